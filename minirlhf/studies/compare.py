"""A comparison: presets and values side by side, every variant over several seeds.

    OUT/compare.json    OUT/compare.html
    OUT/VARIANT/sSEED/  the directory of a run

A variant is a preset or file with one value for every varied key; a cell is a variant with a seed, and its run is the
one of `minirlhf run PRESET --set KEY=VALUE --seed SEED`. Finished cells are kept: the same comparison in the same
directory continues where it stopped.

Not here: the grid (grid.py), how a cell is run (cell_runs.py), statistics over seeds (summary.py), which measure
decides (judged.py), what the seeds share (shared.py), printing.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from minirlhf.errors import UserError
from minirlhf.events import Emit
from minirlhf.pipeline.pipeline import run
from minirlhf.report.of_compare import write_compare_page
from minirlhf.signals import Terminated
from minirlhf.store.files import write_json
from minirlhf.store.layout import claim_directory
from minirlhf.store.lock import locked
from minirlhf.studies.cell_runs import Runner, cell_runner, finished_measures, jobs_that_fit
from minirlhf.studies.grid import RESULT, Cell, Variant, cell_directory, stem
from minirlhf.studies.judged import judged
from minirlhf.studies.mixed import mixed_cells, mixed_warning
from minirlhf.studies.shared import shared_parts, shared_sentence
from minirlhf.studies.summary import Outcome, summary


def default_directory(presets: Sequence[str]) -> Path:
    """Make runs/compare-NAME-DATE-TIME, which was not there, and return it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(stem(preset) for preset in presets))[:64]
    return claim_directory(Path("runs") / f"compare-{name}-{datetime.now():%Y%m%d-%H%M%S}")


def compare(
    cells: Sequence[Cell], directory: Path, emit: Emit, runner: Runner = run, *, jobs: int | None = None
) -> UserError | None:
    """Run unfinished cells, summarise each variant, write compare.json and its page; returns the first failure.

    jobs: runs at once, each in a process of its own if there are several; None: as many as the cores have room for.
    Events, in the order of the cells: compare_started, cell_started, cell_finished, cell_failed, warning (each text
    once), variant, compare_finished. A failed run is recorded and the others continue.
    """
    directory = directory.absolute()
    try:
        with locked(directory / ".lock", emit):
            outcomes, failure = run_cells(cells, directory, emit, runner, jobs)
            mixed = mixed_cells(outcomes, directory)
            if mixed:
                emit({"event": "warning", "message": mixed_warning(mixed)})
            grounds: dict[str, Any] = {"judged": judged(cells, outcomes), "shared": shared_parts(cells)}
            write_comparison(
                outcomes, directory, emit, {**grounds, "notes": notes_on(outcomes, grounds), "mixed": mixed}
            )
    except (KeyboardInterrupt, Terminated) as fault:
        raise type(fault)(f"the same command with --out {shlex.quote(str(directory))} goes on") from fault
    return failure


def run_cells(
    cells: Sequence[Cell], directory: Path, emit: Emit, runner: Runner, jobs: int | None
) -> tuple[dict[Variant, Outcome], UserError | None]:
    """Outcome of each variant in the order of the cells, and the first failure; finished cells are not run again."""
    warn, failure = WarnOnce(emit), None
    finished = [finished_measures(cell, cell_directory(directory, cell)) for cell in cells]
    unfinished = [cell for cell, measures in zip(cells, finished, strict=True) if measures is None]
    jobs = max(1, min(jobs or jobs_that_fit(cells), len(unfinished)))
    emit({"event": "compare_started", "out_dir": str(directory), "cells": len(cells), "jobs": jobs})
    outcomes: dict[Variant, Outcome] = {}
    with cell_runner(unfinished, directory, warn, runner, jobs) as run_one:
        for number, (cell, measures) in enumerate(zip(cells, finished, strict=True), start=1):
            outcome = outcomes.setdefault(cell.variant, Outcome())
            about = {"cell": number, "cells": len(cells), "label": cell.variant.label, "seed": cell.seed}
            wall = {}
            if measures is None:
                emit({"event": "cell_started", **about})
                try:
                    measures, wall["seconds"] = run_one(cell)
                except UserError as fault:
                    failure, outcome.failed[cell.seed] = failure or fault, str(fault)
                    emit({"event": "cell_failed", **about, "message": str(fault)})
                    continue
            outcome.measures[cell.seed] = measures
            emit({"event": "cell_finished", **about, "kept": not wall, **wall, "measures": measures})
    return outcomes, failure


def write_comparison(
    outcomes: Mapping[Variant, Outcome], directory: Path, emit: Emit, grounds: Mapping[str, Any]
) -> None:
    """Write compare.json and compare.html; emits a row for each variant, then compare_finished.

    grounds: judged (the measure that decides), shared (what the seeds have in common), notes (both as sentences), mixed
    (what the cells were not equally made of).
    """
    first = next(iter(outcomes.values()))
    rows = [summary(variant, outcome, first) for variant, outcome in outcomes.items()]
    write_json(directory / RESULT, {"variants": rows, **grounds})
    measure, notes = grounds["judged"]["measure"], grounds["notes"]
    page = write_compare_page(directory, rows, measured_runs(outcomes, directory), measure, notes)
    for row in rows:
        emit({"event": "variant", **row})
    said = {key: grounds[key] for key in ("judged", "shared", "notes")}
    emit({"event": "compare_finished", "out_dir": str(directory), "page": str(page), **said})


def notes_on(outcomes: Mapping[Variant, Outcome], grounds: Mapping[str, Any]) -> list[str]:
    """Sentences below the tables: which measure decides, which intervals these are, and what the seeds share."""
    seeds = max(len(outcome.measures) + len(outcome.failed) for outcome in outcomes.values())
    interval = "Intervals: 95 %, Student's t over the seeds, each by itself; of KL and seconds down to 0, of F up to 1."
    if seeds < 2:
        interval = "One seed has no interval, and tells nothing about another: give more --seeds."
    why = [grounds["judged"]["why"]] if len(outcomes) > 1 else []
    return [*why, interval, *([shared_sentence(grounds["shared"])] if seeds > 1 else [])]


def measured_runs(outcomes: Mapping[Variant, Outcome], directory: Path) -> dict[str, dict[int, Path]]:
    """Label of a variant -> seed -> directory of its finished run."""
    return {
        variant.label: {seed: variant.run_directory(directory, seed) for seed in outcome.measures}
        for variant, outcome in outcomes.items()
    }


class WarnOnce:
    """Event sink that forwards only warnings and drops repeats."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._said = emit, set[str]()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "warning" and event["message"] not in self._said:
            self._said.add(event["message"])
            self._emit(event)
