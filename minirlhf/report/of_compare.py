"""compare.html: variants side by side, their curves over each other, every seed and the mean of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from minirlhf.report.of_run import CURVES, REPORT, column, names, plain, read_metrics
from minirlhf.report.page import number, render
from minirlhf.store.files import write_text

PAGE = "compare.html"
COLUMNS = (  # what is compared: its name, its key among the measures, its form
    ("score", "score_mean", "+.3f"),
    ("score gain", "score_gain", "+.3f"),
    ("true score", "true_score_mean", "+.3f"),
    ("KL", "kl_nats_per_sequence", ".2f"),
    ("optimality F", "optimality", ".4f"),
    ("ppo, s", "seconds_ppo", ".1f"),
)
JUDGED = ("optimality", "true_score_mean", "score_gain")  # by the first of these that is known is one better


def write_compare_page(
    directory: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Mapping[int, Path]]
) -> Path:
    """OUT/compare.html. rows: those of compare.json in the order of the variants; runs: label -> seed -> its run."""
    metrics = {label: {seed: read_metrics(run) for seed, run in seeds.items()} for label, seeds in runs.items()}
    found = list(dict.fromkeys(name for seeds in metrics.values() for m in seeds.values() for name in names(m)))
    charts = [[title, what, wanted[0]] for title, what, wanted in CURVES if moves(metrics, wanted[0])][:6]
    first = [name for _, _, name in charts]
    data = {
        "names": [*first, *(name for name in found if name not in first)],
        "shown": charts,
        "variants": [
            {
                "label": label,
                "seeds": [
                    {"seed": seed, "steps": [row["step"] for row in m], "metrics": {n: column(m, n) for n in names(m)}}
                    for seed, m in seeds.items()
                ],
            }
            for label, seeds in metrics.items()
        ],
    }
    heads, table = table_of(list(runs), rows)
    title = f"{len(runs)} variants, {max(map(len, runs.values()), default=0)} seeds"
    links = [
        [(seed, quote(f"{os.path.relpath(run, directory)}/{REPORT}")) for seed, run in seeds.items()]
        for seeds in runs.values()
    ]
    shown = {"title": title, "directory": str(directory), "heads": heads, "table": table, "links": links}
    path = directory / PAGE
    write_text(path, render("compare.html.j2", "compare.js", data, **shown))
    return path


def moves(metrics: Mapping[str, Mapping[int, list[dict[str, Any]]]], name: str) -> bool:
    """Whether this metric changes in the course of any run: a constant needs no curve."""
    return any(len(set(column(m, name))) > 1 for seeds in metrics.values() for m in seeds.values())


def table_of(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and a line a variant; only the columns that something stands in."""
    columns = [c for c in COLUMNS if any(c[1] in row["measures"] for row in rows)]
    failures = ["failed"] if any(row["failed"] for row in rows) else []
    judged = next((key for key in JUDGED if any(key in row["measures"] for row in rows)), JUDGED[-1])
    named = {key: name for name, key, _ in COLUMNS}
    beside = [f"beats first in {named[judged]}"] if len(rows) > 1 else []
    lines = []
    for label, row in zip(labels, rows, strict=True):
        failed = [str(len(row["failed"]))] if failures else []
        cells = [interval(row["measures"].get(key), form) for _, key, form in columns]
        chance = row["measures"].get(judged, {}).get("better_than_first")
        chances = ["" if chance is None else f"{chance:.0%}"] if beside else []
        lines.append([label, str(len(row["seeds"])), *failed, *cells, *chances])
    return ["variant", "seeds", *failures, *(name for name, _, _ in columns), *beside], lines


def interval(measure: Mapping[str, Any] | None, form: str) -> str:
    """The mean over the seeds, and its 95 % interval where there is one."""
    if measure is None or plain(measure["mean"]) is None:
        return "n/a"
    ends = [number(end, form) for end in measure.get("ci95", ())]
    return number(measure["mean"], form) + (f" [{', '.join(ends)}]" if ends else "")
