"""Measures of finished runs, and their summary over seeds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError
from minirlhf.stages.evaluate import bootstrap_interval
from minirlhf.store.files import read_json
from minirlhf.streams import generator
from minirlhf.studies.grid import Measures, Outcome, Variant

RESAMPLES = 10_000
MORE_IS_BETTER = ("score_mean", "score_gain", "true_score_mean", "optimality")


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
