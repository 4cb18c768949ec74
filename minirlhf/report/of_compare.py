"""compare.html: the page of a comparison, with the table of its variants and their curves of every seed and the mean.

Not here: the statistics over seeds (studies/summary.py), and the markup (compare.html.j2).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from minirlhf.report.axes import least_spans
from minirlhf.report.of_run import CURVES, REPORT
from minirlhf.report.page import number, render
from minirlhf.report.run_files import metric_names, metric_values, read_metrics, six_digits
from minirlhf.store.files import write_text

PAGE = "compare.html"
COLUMNS = (  # columns of the table: title, key of the measure, number format
    ("score", "score_mean", "+.3f"),
    ("score gain", "score_gain", "+.3f"),
    ("true score", "true_score_mean", "+.3f"),
    ("KL", "kl_nats_per_sequence", ".2f"),
    ("optimality F", "optimality", ".4f"),
    ("ppo, s", "seconds_ppo", ".1f"),
)
JUDGED = ("optimality", "true_score_mean", "score_gain")  # the first one known decides which variant is better


def write_compare_page(
    directory: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Mapping[int, Path]]
) -> Path:
    """Write OUT/compare.html and return its path.

    rows: the variants of compare.json, in order; runs: label of a variant -> seed -> directory of the run.
    """
    metrics = {label: {seed: read_metrics(run) for seed, run in seeds.items()} for label, seeds in runs.items()}
    measured = list(
        dict.fromkeys(name for seeds in metrics.values() for m in seeds.values() for name in metric_names(m))
    )
    charts = [[title, what, wanted[0]] for title, what, wanted in CURVES if changes(metrics, wanted[0])][:6]
    first = [name for _, _, name in charts]
    data = {
        "names": [*first, *(name for name in measured if name not in first)],
        "shown": charts,
        "least": least_spans([m for seeds in metrics.values() for m in seeds.values()]),
        "variants": [
            {
                "label": label,
                "seeds": [
                    {
                        "seed": seed,
                        "steps": [row["step"] for row in m],
                        "metrics": {n: metric_values(m, n) for n in metric_names(m)},
                    }
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


def changes(metrics: Mapping[str, Mapping[int, list[dict[str, Any]]]], name: str) -> bool:
    """True if a metric changes during any of the runs; a constant needs no curve."""
    return any(len(set(metric_values(m, name))) > 1 for seeds in metrics.values() for m in seeds.values())


def table_of(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads of the table, and its lines, one a variant; columns without any value are left out."""
    columns = [c for c in COLUMNS if any(c[1] in row["measures"] for row in rows)]
    failures = ["failed"] if any(row["failed"] for row in rows) else []
    judged = next((key for key in JUDGED if any(key in row["measures"] for row in rows)), JUDGED[-1])
    titles = {key: title for title, key, _ in COLUMNS}
    beats = [f"beats first in {titles[judged]}"] if len(rows) > 1 else []
    lines = []
    for label, row in zip(labels, rows, strict=True):
        failed = [str(len(row["failed"]))] if failures else []
        cells = [interval(row["measures"].get(key), form) for _, key, form in columns]
        chance = row["measures"].get(judged, {}).get("better_than_first")
        chances = ["" if chance is None else f"{chance:.0%}"] if beats else []
        lines.append([label, str(len(row["seeds"])), *failed, *cells, *chances])
    return ["variant", "seeds", *failures, *(name for name, _, _ in columns), *beats], lines


def interval(measure: Mapping[str, Any] | None, form: str) -> str:
    """Text of a mean over the seeds with its 95 % interval, if there is one; - without a mean."""
    if measure is None or six_digits(measure["mean"]) is None:
        return "-"
    ends = [number(end, form) for end in measure.get("ci95", ())]
    return number(measure["mean"], form) + (f" [{', '.join(ends)}]" if ends else "")
