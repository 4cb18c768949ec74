"""The summary of a variant: measures of its finished runs, and their mean, interval and improvement over seeds.

Not here: which runs there are (grid.py, compare.py), and how a summary is shown (report/of_compare.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError
from minirlhf.stages.evaluate import bootstrap_interval
from minirlhf.store.files import checked_number, read_json
from minirlhf.streams import generator
from minirlhf.studies.grid import Variant

Measures = dict[str, float | None]
RESAMPLES = 10_000  # of the bootstrap
MORE_IS_BETTER = ("score_mean", "score_gain", "true_score_mean", "optimality")


@dataclass
class Outcome:
    """Results of one variant by seed: measures of finished runs, error messages of failed ones."""

    measures: dict[int, Measures] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def measures_of(directory: Path) -> Measures:
    """Compared numbers of a run's evaluation.json; true score and optimality only if the run has them.

    None where nothing was measured (no reward applied), and where nothing can be gained (optimality). InputError if the
    file is no evaluation.
    """
    file = directory / "evaluation.json"
    found = read_json(file)
    try:
        measures: Measures = {"score_mean": number_or_none(found["policy"]["score_mean"])}
        measures |= {name: number_or_none(found[name]) for name in ("score_gain", "kl_nats_per_sequence")}
        if "true_score_gain" in found:
            measures["true_score_mean"] = checked_number(found["policy"]["true_score_mean"])
        if "optimality" in found:
            measures["optimality"] = number_or_none(found["optimality"])
        measures["seconds_ppo"] = checked_number(found["seconds"]["ppo"])
    except (KeyError, TypeError, ValueError):
        raise InputError("not the evaluation of a run", str(file), "remove the run's directory") from None
    return measures


def number_or_none(value: Any) -> float | None:
    """Number of a JSON file; None for null."""
    return None if value is None else checked_number(value)


def summary(variant: Variant, outcome: Outcome, first: Outcome) -> dict[str, Any]:
    """Row of a variant in compare.json; `seeds` gives the order of every measure's `values`.

    `better_than_first`: probability that a run of this variant is better than one of the first variant.
    """
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
    """Probability of improvement: mean over all pairs of 1 if value > other, 1/2 if equal, else 0; None without a pair.

    Source: Agarwal et al., 2108.13264 (probability of improvement, the Mann-Whitney statistic over its size).
    """
    pairs = [(a > b) + (a == b) / 2 for a in values for b in others if a is not None and b is not None]
    return sum(pairs) / len(pairs) if pairs else None


def over_seeds(values: list[float | None]) -> Iterator[tuple[str, Any]]:
    """Statistics over the seeds that have a value: mean; from 2 on ci95 (bootstrap); from 4 on iqm; and the values.

    iqm: interquartile mean, without the lowest and highest quarter, so that one bad seed moves it little (2108.13264).
    """
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    yield "mean", known.mean().item() if len(known) else None
    if len(known) > 1:
        yield "ci95", bootstrap_interval(known, RESAMPLES, generator(0, "compare", 0))
    if len(known) >= 4:
        cut = len(known) // 4
        yield "iqm", known.sort().values[cut : len(known) - cut].mean().item()
    yield "values", values
