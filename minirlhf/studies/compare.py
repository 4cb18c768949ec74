"""Presets and values side by side: every variant over several seeds, one run after another or several at once.

    OUT/compare.json    OUT/compare.html
    OUT/VARIANT/sSEED/  what `minirlhf run` leaves

A variant is a preset or file with one value for every key that is varied; a cell is a variant with a seed, and is what
`minirlhf run PRESET --set KEY=VALUE --seed SEED` would be. What is done stays done: the same comparison in the same
directory goes on where it stopped. Nothing is printed here; `compare` emits one dict an event.
"""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import UsageError, UserError
from minirlhf.events import Emit
from minirlhf.pipeline.build import resolve_device
from minirlhf.pipeline.pipeline import run
from minirlhf.report.of_compare import write_compare_page
from minirlhf.signals import Terminated
from minirlhf.store.files import write_json
from minirlhf.store.lock import locked
from minirlhf.studies.grid import RESULT, Cell, Measures, Outcome, Variant, place, stem
from minirlhf.studies.jobs import Children, at_once, cores
from minirlhf.studies.summary import measures_of, summary

Runner = Callable[[Config, Registry, Path, Emit], Path]


def default_directory(presets: Sequence[str]) -> Path:
    """runs/compare-NAME-DATE-TIME"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(stem(preset) for preset in presets))[:64]
    return Path("runs") / f"compare-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def compare(
    cells: Sequence[Cell], directory: Path, emit: Emit, runner: Runner = run, *, jobs: int | None = None
) -> UserError | None:
    """Run what is not done, measure, write compare.json; returns the first failure of a run, if there is one.

    jobs: runs at once, each in a process of its own if there are several; None: as many as the cores have room for.
    Events, in the order of the cells: compare_started, cell_started, cell_finished, cell_failed, warning (each once),
    variant, compare_finished.
    """
    directory = directory.absolute()
    warn, first = Once(emit), None
    try:
        with locked(directory / ".lock"):
            done = [finished_before(cell, place(directory, cell)) for cell in cells]
            left = [cell for cell, measures in zip(cells, done, strict=True) if measures is None]
            jobs = max(1, min(jobs or room(cells), len(left)))
            emit({"event": "compare_started", "out_dir": str(directory), "cells": len(cells), "jobs": jobs})
            outcomes: dict[Variant, Outcome] = {}
            with started(left, directory, warn, runner, jobs) as wait:
                for number, (cell, measures) in enumerate(zip(cells, done, strict=True), start=1):
                    outcome = outcomes.setdefault(cell.variant, Outcome())
                    about = {"cell": number, "cells": len(cells), "label": cell.variant.label, "seed": cell.seed}
                    wall = {}
                    try:
                        if measures is None:
                            emit({"event": "cell_started", **about})
                            measures, wall["seconds"] = wait(cell)
                    except UserError as fault:
                        first, outcome.failed[cell.seed] = first or fault, str(fault)
                        emit({"event": "cell_failed", **about, "message": str(fault)})
                        continue
                    outcome.measures[cell.seed] = measures
                    emit({"event": "cell_finished", **about, "kept": not wall, **wall, "measures": measures})
            first_one = next(iter(outcomes.values()))
            found = [summary(variant, outcome, first_one) for variant, outcome in outcomes.items()]
            write_json(directory / RESULT, {"variants": found})
            page = write_compare_page(directory, found, runs_of(outcomes, directory))
            for row in found:
                emit({"event": "variant", **row})
            emit({"event": "compare_finished", "out_dir": str(directory), "page": str(page)})
    except (KeyboardInterrupt, Terminated) as told:
        raise type(told)(f"the same command with --out {shlex.quote(str(directory))} goes on") from told
    return first


def room(cells: Sequence[Cell]) -> int:
    """How many runs the cores have room for; a GPU is not shared unless that is asked for."""
    if any(resolve_device(cell.config.run.device).type != "cpu" for cell in cells):
        return 1
    return cores() // max(cell.config.run.threads for cell in cells)


@contextmanager
def started(
    cells: Sequence[Cell], directory: Path, warn: Emit, runner: Runner, jobs: int
) -> Iterator[Callable[[Cell], tuple[Measures, float]]]:
    """What gives the measures and seconds of a cell when it is called; with one job that is when the cell is run. With
    several they are run in their order before that, and the warnings of each wait until it is asked for."""
    if jobs == 1:
        yield lambda cell: run_cell(cell, place(directory, cell), warn, runner)
        return
    children = Children()
    with at_once(jobs, children, warn) as pool:
        said: dict[Path, list[dict[str, Any]]] = {place(directory, cell): [] for cell in cells}
        elsewhere = children if runner is run else runner
        futures = {
            own: pool.submit(run_cell, cell, own, said[own].append, elsewhere)
            for cell, own in zip(cells, said, strict=True)
        }

        def wait(cell: Cell) -> tuple[Measures, float]:
            own = place(directory, cell)
            try:
                return futures[own].result()
            finally:
                for event in said[own]:
                    warn(event)

        yield wait


class Once:
    """Of a run's events only the warnings, and each of them once in a comparison."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._said = emit, set[str]()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "warning" and event["message"] not in self._said:
            self._said.add(event["message"])
            self._emit(event)


def runs_of(outcomes: Mapping[Variant, Outcome], directory: Path) -> dict[str, dict[int, Path]]:
    """Label -> seed -> directory of the runs that are measured."""
    return {
        variant.label: {seed: directory / variant.directory / f"s{seed}" for seed in outcome.measures}
        for variant, outcome in outcomes.items()
    }


def run_cell(cell: Cell, directory: Path, warn: Emit, runner: Runner) -> tuple[Measures, float]:
    """A run in a directory of its own, and its seconds; what was left by one that was stopped is removed first."""
    began = perf_counter()
    for message in cell.registry.warnings:
        warn({"event": "warning", "message": message})
    if directory.exists():
        with locked(directory / ".lock"):  # nobody is at work in it
            shutil.rmtree(directory)
    return measures_of(runner(cell.config, cell.registry, directory, warn)), perf_counter() - began


def finished_before(cell: Cell, directory: Path) -> Measures | None:
    """The measures of a cell that is done; None for one that is to be run. What belongs to neither is refused."""
    if not os.path.lexists(directory):
        return None
    todo = "choose another --out, or remove it"
    if not (directory / "evaluation.json").is_file():
        own = directory.is_dir() and not directory.is_symlink()
        if not own or (any(directory.iterdir()) and not (directory / ".lock").is_file()):
            raise UsageError("not a run that was stopped", str(directory), todo)
        return None
    config = directory / "config.toml"
    if not config.is_file() or config.read_bytes() != dump_toml(cell.config).encode():
        raise UsageError("a run of another configuration stands where this one would", str(directory), todo)
    return measures_of(directory)
