"""Presets and values side by side: every variant over several seeds, one run after another or several at once.

    OUT/compare.json    OUT/compare.html
    OUT/VARIANT/sSEED/  what `minirlhf run` leaves

A variant is a preset or file with one value for every key that is varied; a cell is a variant with a seed, and is what
`minirlhf run PRESET --set KEY=VALUE --seed SEED` would be. What is done stays done: the same comparison in the same
directory goes on where it stopped. Nothing is printed here; `compare` emits one dict an event.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from minirlhf.base import Emit
from minirlhf.config import Config, dump_toml, load_config, toml_value
from minirlhf.errors import ConfigError, InputError, UsageError, UserError
from minirlhf.evaluate import bootstrap_interval
from minirlhf.jobs import Children, at_once, cores
from minirlhf.registry import Registry
from minirlhf.report.of_compare import write_compare_page
from minirlhf.run import run
from minirlhf.signals import Terminated
from minirlhf.store.files import write_json
from minirlhf.store.lock import locked
from minirlhf.store.model import read_json, resolve_device
from minirlhf.streams import generator

RESAMPLES = 10_000
RESULT = "compare.json"
MORE_IS_BETTER = ("score_mean", "score_gain", "true_score_mean", "optimality")
LONGEST = 100  # characters of a variant's directory: a file system takes 255 bytes

Runner = Callable[[Config, Registry, Path, Emit], Path]
Measures = dict[str, float | None]


@dataclass(frozen=True)
class Variant:
    """A preset or file, (key, text of its value) for each key that is varied, and what to call it."""

    preset: str
    chosen: tuple[tuple[str, str], ...]
    label: str
    directory: str

    def plain(self) -> dict[str, Any]:
        """The preset and the values as JSON has them."""
        values = {key: json.loads(json.dumps(toml_value(text), default=str)) for key, text in self.chosen}
        return {"preset": self.preset, **values}


@dataclass(frozen=True)
class Cell:
    """One run: a variant, a seed, and the configuration and plugins that they resolve to."""

    variant: Variant
    seed: int
    config: Config
    registry: Registry


@dataclass
class Outcome:
    """What the cells of a variant gave, by seed: measures, or why there are none."""

    measures: dict[int, Measures] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


# ---- from arguments to variants ----------------------------------------------------------------------------


def variations(texts: Sequence[str]) -> dict[str, list[str]]:
    """KEY=a,b,c, several times -> the texts of each key's values (UsageError for what varies nothing)."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key, values = key.strip(), [value.strip() for value in split_values(listed)]
        if not equals or not all(values) or not all(key.split(".")):
            raise UsageError("expected KEY=VALUE,VALUE,...", f"--vary {text}", "such as --vary kl.coef=0,0.05,0.1")
        if key == "run.seed":
            raise UsageError("run.seed is not varied", f"--vary {text}", "every variant is run with seeds 0 to N-1")
        if key in found:
            raise UsageError(f"{key} is varied twice", f"--vary {text}", "give all its values in one --vary")
        typed = [(isinstance(value, bool), value) for value in map(toml_value, values)]  # because True == 1
        for index, value in enumerate(typed):
            if value in typed[:index]:
                raise UsageError(f"{values[index]} is given twice", f"--vary {text}", "remove one of them")
        found[key] = values
    return found


def split_values(text: str) -> list[str]:
    """The parts between commas that stand outside brackets and quotes; a quote inside a word is only a letter."""
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = quote == '"' and letter == "\\" and not escaped
        elif letter in "\"'" and (depth or not parts[-1].strip()):
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth = max(0, depth - 1)
        elif letter == "," and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def grid(presets: Sequence[str], varied: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Each preset with each combination of the values, the last key fastest."""
    for preset, times in Counter(presets).items():
        if times > 1:
            raise UsageError(f"{preset} is given twice", todo="name each preset or file once")
    combined = [tuple(zip(varied, values, strict=True)) for values in product(*varied.values())]
    cells = list(product(presets, combined))
    names = directory_names(cells)
    variants = []
    for (preset, chosen), name in zip(cells, names, strict=True):
        words = [f"{key}={text}" for key, text in chosen]
        label = " ".join([preset, *words] if len(presets) > 1 or not words else words)
        variants.append(Variant(preset, chosen, label, name))
    return variants


def directory_names(cells: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> list[str]:
    """A name for each that every file system takes; one that is too long or not its own ends in a hash."""
    names = []
    for preset, chosen in cells:
        values = ",".join(f"{key}={text}" for key, text in chosen)
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", f"{stem(preset)}.{values}" if values else stem(preset))
        names.append(name.lstrip("._-") or "variant")
    seen = Counter([RESULT, *(name.casefold() for name in names)])
    for index, name in enumerate(names):
        if seen[name.casefold()] > 1 or len(name) > LONGEST:
            digest = hashlib.sha256(json.dumps(cells[index]).encode(errors="replace")).hexdigest()[:8]
            names[index] = f"{name[:LONGEST]}-{digest}"
    return names


def stem(preset: str) -> str:
    """A preset's name, or a file's without its folder and ending."""
    return Path(preset).stem if preset.endswith(".toml") else preset


def default_directory(presets: Sequence[str]) -> Path:
    """runs/compare-NAME-DATE-TIME"""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(stem(preset) for preset in presets))[:64]
    return Path("runs") / f"compare-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def resolve(
    variants: Sequence[Variant],
    seeds: int,
    *,
    options: Mapping[str, Any],
    sets: Sequence[str],
    seeded: Sequence[str] = (),
    **given: Any,
) -> list[Cell]:
    """Every cell with the configuration that it will run, or one ConfigError with the faults of all of them.

    `seeded`: keys beside run.seed that are the cell's seed. The other keywords are those of `load_config`. Plugins are
    loaded for each cell, as for each run.
    """
    cells, faults = [], dict[str, dict[str, None]]()
    for variant, seed in product(variants, range(seeds)):
        mine = [*sets, *(f"{key}={text}" for key, text in variant.chosen)]
        try:
            drawn = dict.fromkeys(("run.seed", *seeded), seed)
            config, registry = load_config(variant.preset, options={**options, **drawn}, sets=mine, **given)
            for key in drawn:
                section, _, name = key.partition(".")
                if getattr(getattr(config, section), name) != seed:
                    raise UsageError(f"{key} cannot be set here", todo="every variant is run with seeds 0 to N-1")
            cells.append(Cell(variant, seed, config, registry))
        except ConfigError as fault:
            for line in fault.faults:
                faults.setdefault(line, {})[variant.label] = None
        except UsageError as fault:
            faults.setdefault(str(fault), {})[variant.label] = None
    if faults:
        lines = faults.items()
        raise ConfigError([t if len(labels) == len(variants) else f"{next(iter(labels))}: {t}" for t, labels in lines])
    return cells


# ---- running -----------------------------------------------------------------------------------------------


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


def place(directory: Path, cell: Cell) -> Path:
    """OUT/VARIANT/sSEED"""
    return directory / cell.variant.directory / f"s{cell.seed}"


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


# ---- measuring ---------------------------------------------------------------------------------------------


def measures_of(directory: Path) -> Measures:
    """What is compared, out of a run's evaluation.json; true score and optimality only where there is one to know."""
    file = directory / "evaluation.json"
    found = read_json(file)
    try:
        measures: Measures = {"score_mean": float(found["policy"]["score_mean"])}
        measures |= {name: float(found[name]) for name in ("score_gain", "kl_nats_per_sequence")}
        if "true_score_gain" in found:
            measures["true_score_mean"] = float(found["policy"]["true_score_mean"])
        if "optimality" in found:
            measures["optimality"] = None if found["optimality"] is None else float(found["optimality"])
        measures["seconds_ppo"] = float(found["seconds"]["ppo"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError("not the evaluation of a run", str(file), "remove the run's directory") from None
    return measures


def summary(variant: Variant, outcome: Outcome, first: Outcome) -> dict[str, Any]:
    """The row of a variant: `seeds` are those that `values` are of, in this order; `better_than_first` is how likely a
    run of it is to be better than one of the first variant."""
    rows = list(outcome.measures.values())
    names = list(dict.fromkeys(name for row in rows for name in row))
    measures = {name: dict(over_seeds([row.get(name) for row in rows])) for name in names}
    for name in MORE_IS_BETTER if outcome is not first else ():
        others = [row.get(name) for row in first.measures.values()]
        chance = improvement([row.get(name) for row in rows], others)
        if chance is not None:
            measures[name]["better_than_first"] = chance
    return {
        "variant": variant.plain(),
        "seeds": list(outcome.measures),
        "failed": {str(seed): message for seed, message in outcome.failed.items()},
        "measures": measures,
    }


def improvement(values: Sequence[float | None], others: Sequence[float | None]) -> float | None:
    """P(a value is larger than one of the others), over all pairs, equal ones count half; None without a pair.

    Source: Agarwal et al., 2108.13264 (probability of improvement, the Mann-Whitney statistic over its size).
    """
    pairs = [(a > b) + (a == b) / 2 for a in values for b in others if a is not None and b is not None]
    return sum(pairs) / len(pairs) if pairs else None


def over_seeds(values: list[float | None]) -> Iterator[tuple[str, Any]]:
    """Mean over the seeds that have a value, with two or more its 95 % bootstrap interval, and with four or more the
    mean of their middle half (2108.13264: a seed that went wrong does not move it)."""
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    yield "mean", known.mean().item() if len(known) else None
    if len(known) > 1:
        yield "ci95", list(bootstrap_interval(known, RESAMPLES, generator(0, "compare", 0)))
    if len(known) >= 4:
        cut = len(known) // 4
        yield "iqm", known.sort().values[cut : len(known) - cut].mean().item()
    yield "values", values
