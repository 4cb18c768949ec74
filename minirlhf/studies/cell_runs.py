"""Runs of the cells of a comparison: found finished, run in this process, or several at once in processes of their own.

Not here: the order of the cells and their events (compare.py), the child processes themselves (jobs.py).
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import UsageError
from minirlhf.events import Emit
from minirlhf.pipeline.build import resolve_device
from minirlhf.pipeline.pipeline import run
from minirlhf.store.lock import locked
from minirlhf.studies.grid import Cell, cell_directory
from minirlhf.studies.jobs import Children, at_once, cores
from minirlhf.studies.summary import Measures, measures_of

Runner = Callable[[Config, Registry, Path, Emit], Path]


def finished_measures(cell: Cell, directory: Path) -> Measures | None:
    """Measures of a cell whose run is finished, None if it has to be run.

    UsageError if the directory holds something else than a stopped run of this project or this cell's finished one.
    """
    if not os.path.lexists(directory):
        return None
    todo = "choose another --out, or remove it"
    if not (directory / "evaluation.json").is_file():
        real = directory.is_dir() and not directory.is_symlink()
        if not real or (any(directory.iterdir()) and not (directory / ".lock").is_file()):
            raise UsageError("not a run that was stopped", str(directory), todo)
        return None
    config = directory / "config.toml"
    if not config.is_file() or config.read_bytes() != dump_toml(cell.config, directory).encode():
        raise UsageError("a run of another configuration stands where this one would", str(directory), todo)
    return measures_of(directory)


def run_cell(cell: Cell, directory: Path, warn: Emit, runner: Runner) -> tuple[Measures, float]:
    """Measures and wall-clock seconds of one run; what a stopped run left in the directory is removed first."""
    began = perf_counter()
    for message in cell.registry.warnings:
        warn({"event": "warning", "message": message})
    if directory.exists():
        with locked(directory / ".lock", warn):  # refused while another process runs in it
            shutil.rmtree(directory)
    return measures_of(runner(cell.config, cell.registry, directory, warn)), perf_counter() - began


@contextmanager
def cell_runner(
    cells: Sequence[Cell], directory: Path, warn: Emit, runner: Runner, jobs: int
) -> Iterator[Callable[[Cell], tuple[Measures, float]]]:
    """Function that returns the measures and seconds of a cell, or raises the error that ended its run.

    With one job a cell is run when the function is called. With several, all cells are submitted at once in their
    order, the function waits, and the warnings of a cell are held back until then: the order of events is the same.
    """
    if jobs == 1:
        yield lambda cell: run_cell(cell, cell_directory(directory, cell), warn, runner)
        return
    children = Children(warn)
    with at_once(jobs, children, warn) as pool:
        warnings: dict[Path, list[dict[str, Any]]] = {cell_directory(directory, cell): [] for cell in cells}
        parallel_runner = children if runner is run else runner
        futures = {
            path: pool.submit(run_cell, cell, path, warnings[path].append, parallel_runner)
            for cell, path in zip(cells, warnings, strict=True)
        }

        def wait(cell: Cell) -> tuple[Measures, float]:
            path = cell_directory(directory, cell)
            try:
                return futures[path].result()
            finally:
                for event in warnings[path]:
                    warn(event)

        yield wait


def jobs_that_fit(cells: Sequence[Cell]) -> int:
    """Runs at once if none is asked for: cores / threads of the largest run; 1 on a GPU, which runs do not share."""
    if any(resolve_device(cell.config.run.device).type != "cpu" for cell in cells):
        return 1
    return cores() // max(cell.config.run.threads for cell in cells)
