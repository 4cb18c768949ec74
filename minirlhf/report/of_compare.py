"""compare.html: the page of a comparison, with the table of its variants and their curves of every seed and the mean.

Its tables are those of the terminal, too. Not here: the statistics over seeds (studies/summary.py), which measure
decides (studies/judged.py), and the markup (compare.html.j2).
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
    ("score gain", "score_gain", "+.3f"),
    ("KL", "kl_nats_per_sequence", ".2f"),
    ("J", "objective", "+.3f"),
    ("F", "optimality", ".4f"),
    ("true score", "true_score_mean", "+.3f"),
    ("ppo, s", "seconds_ppo", ".1f"),
)
NO_PAIR: Mapping[str, Any] = {"pairs": 0, "higher": 0, "lower": 0, "mean": None}


def write_compare_page(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Mapping[int, Path]],
    measure: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write OUT/compare.html and return its path.

    rows: the variants of compare.json, in order; runs: label of a variant -> seed -> directory of the run; measure: key
    of the one that decides which variant is better; notes: sentences below the tables.
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
    against = against_first(list(runs), rows, measure)
    path = directory / PAGE
    write_text(path, render("compare.html.j2", "compare.js", data, **shown, against=against, notes=notes))
    return path


def changes(metrics: Mapping[str, Mapping[int, list[dict[str, Any]]]], name: str) -> bool:
    """True if a metric changes during any of the runs; a constant needs no curve."""
    return any(len(set(metric_values(m, name))) > 1 for seeds in metrics.values() for m in seeds.values())


def table_of(labels: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads of the table, and its lines, one a variant; columns without any value are left out."""
    columns = [c for c in COLUMNS if any(c[1] in row["measures"] for row in rows)]
    failures = ["failed"] if any(row["failed"] for row in rows) else []
    lines = []
    for label, row in zip(labels, rows, strict=True):
        failed = [str(len(row["failed"]))] if failures else []
        cells = [interval(row["measures"].get(key), form) for _, key, form in columns]
        lines.append([label, str(len(row["seeds"])), *failed, *cells])
    return ["variant", "seeds", *failures, *(name for name, _, _ in columns)], lines


def against_first(
    labels: Sequence[str], rows: Sequence[Mapping[str, Any]], measure: str | None
) -> tuple[list[str], list[list[str]]] | None:
    """Heads and lines of the table of differences to the first variant, seed by seed; None if there is none to show.

    measure: key of the measure that decides.
    """
    column = next((c for c in COLUMNS if c[1] == measure), None)
    if column is None or len(rows) < 2:
        return None
    name, key, form = column
    form = form if form.startswith("+") else f"+{form}"
    lines = []
    for label, row in zip(labels[1:], rows[1:], strict=True):
        found = row["measures"].get(key, {}).get("minus_first", NO_PAIR)
        equal = found["pairs"] - found["higher"] - found["lower"]
        better = f"{found['higher']} of {found['pairs']} seeds" + (f", {equal} equal" if equal else "")
        lines.append([label, interval(found, form), better, verdict(found, name)])
    return [f"minus {labels[0]}", f"difference in {name}", "higher in", "verdict"], lines


def verdict(found: Mapping[str, Any], name: str) -> str:
    """Verdict on a variant by the interval of its differences to the first one (`minus_first` of compare.json)."""
    low, high = found.get("ci95", (-1.0, 1.0))
    if not found["pairs"]:
        return "no seed in common"
    if not found["higher"] and not found["lower"]:
        return "equal in every seed"
    if low > 0:
        return f"beats the first in {name}"
    if high < 0:
        return f"worse than the first in {name}"
    if found["pairs"] == 1:
        return "one seed does not tell"
    needed = found["seeds_to_tell"]
    enough = "more than 1000 would be needed" if needed is None else f"about {needed} would"
    return f"{found['pairs']} seeds do not tell; {enough}"


def interval(measure: Mapping[str, Any] | None, form: str) -> str:
    """Text of a mean over the seeds with its 95 % interval, if there is one; - without a mean."""
    if measure is None or six_digits(measure["mean"]) is None:
        return "-"
    ends = [number(end, form) for end in measure.get("ci95", ())]
    return number(measure["mean"], form) + (f" [{', '.join(ends)}]" if ends else "")
