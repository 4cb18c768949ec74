"""The summary of a variant: measures of its finished runs, their means and intervals over the seeds, and their
differences to the first variant, seed by seed.

Not here: which runs there are (grid.py, compare.py), which measure decides (judged.py), and how a summary is shown
(report/of_compare.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlhf.errors import InputError
from minirlhf.stages.evaluate import gains
from minirlhf.stages.intervals import count_that_tells, t_interval
from minirlhf.store.files import checked_number, read_json
from minirlhf.studies.grid import Variant

Measures = dict[str, float | None]
# Least and largest value that the mean of a measure can have. An interval by Student's t knows nothing of them.
BOUNDS = {"kl_nats_per_sequence": (0.0, math.inf), "seconds_ppo": (0.0, math.inf), "optimality": (-math.inf, 1.0)}


@dataclass
class Outcome:
    """Results of one variant by seed: measures of finished runs, error messages of failed ones."""

    measures: dict[int, Measures] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def measures_of(directory: Path) -> Measures:
    """Compared numbers of a run's evaluation.json; true score and optimality only if the run has them.

    None where nothing was measured (no reward applied), where J cannot be known (objective), and where nothing can be
    gained (optimality). InputError if the file is no evaluation.
    """
    file = directory / "evaluation.json"
    found = read_json(file)
    try:
        measures: Measures = {"score_mean": number_or_none(found["policy"]["score_mean"])}
        measures |= {name: number_or_none(found[name]) for name in ("score_gain", "kl_nats_per_sequence")}
        measures["objective"] = objective_of(found)
        if "true_score_gain" in found:
            measures["true_score_mean"] = checked_number(found["policy"]["true_score_mean"])
        if "optimality" in found:
            measures["optimality"] = number_or_none(found["optimality"])
        measures["seconds_ppo"] = checked_number(found["seconds"]["ppo"])
    except (KeyError, TypeError, ValueError):
        raise InputError("not the evaluation of a run", str(file), "remove the run's directory") from None
    return measures


def objective_of(found: dict[str, Any]) -> float | None:
    """J = score - beta KL of the policy, beta as at the end of the run; None if it is not known.

    Exact on a problem of the exact lab, else what the evaluation says. Evaluations of before they said it have none:
    mean score - beta mean KL of one response a prompt would be another J, of scores without the run's rules.
    """
    if "exact" in found:
        return checked_number(found["exact"]["objective"])
    known = found.get("objective")
    return None if known is None else number_or_none(known["policy"])


def number_or_none(value: Any) -> float | None:
    """Number of a JSON file; None for null."""
    return None if value is None else checked_number(value)


def summary(variant: Variant, outcome: Outcome, first: Outcome) -> dict[str, Any]:
    """Row of a variant in compare.json; `seeds` gives the order of every measure's `values`.

    `minus_first`, of every variant but the first: the differences to the first one's runs of the same seeds.
    """
    rows = list(outcome.measures.values())
    names = list(dict.fromkeys(name for row in rows for name in row))
    measures = {name: dict(over_seeds([row.get(name) for row in rows], *BOUNDS.get(name, ()))) for name in names}
    for name in names if outcome is not first else ():
        seeds = [seed for seed in outcome.measures if seed in first.measures]
        before, after = (column([o.measures[seed].get(name) for seed in seeds]) for o in (first, outcome))
        measures[name]["minus_first"] = dict(paired_statistics(gains(before, after)))
    return {
        "variant": variant.plain(),
        "seeds": list(outcome.measures),
        "failed": {str(seed): message for seed, message in outcome.failed.items()},
        "measures": measures,
    }


def paired_statistics(found: Tensor) -> Iterator[tuple[str, Any]]:
    """Statistics of the differences (n,) of a measure between two variants, one a seed that both have.

    pairs: n; higher, lower: those above and below 0; mean; from two on std, ci95, and seeds_to_tell: the number of
    seeds at which the interval would leave out 0 if mean and std stayed as they are (None: more than 1000).
    """
    yield "pairs", len(found)
    yield "higher", int((found > 0).sum())
    yield "lower", int((found < 0).sum())
    yield "mean", found.mean().item() if len(found) else None
    if len(found) > 1:
        yield "std", found.std().item()
        yield "ci95", t_interval(found)
        yield "seeds_to_tell", count_that_tells(found.mean().item(), found.std().item())


def over_seeds(
    values: Sequence[float | None], least: float = -math.inf, most: float = math.inf
) -> Iterator[tuple[str, Any]]:
    """Statistics over the seeds that have a value: mean; from 2 on ci95 (Student's t); from 4 on iqm; and the values.

    least, most: what lies beyond is left out of the interval, but never the mean, which an estimate may carry there.
    iqm: interquartile mean, without the lowest and highest quarter, so that one bad seed moves it little (2108.13264).
    """
    known = column([value for value in values if value is not None])
    mean = known.mean().item() if len(known) else None
    yield "mean", mean
    if mean is not None and (ends := t_interval(known)):
        yield "ci95", [max(ends[0], min(least, mean)), min(ends[1], max(most, mean))]
    if len(known) >= 4:
        cut = len(known) // 4
        yield "iqm", known.sort().values[cut : len(known) - cut].mean().item()
    yield "values", list(values)


def column(values: Sequence[float | None]) -> Tensor:
    """Values as a tensor (n,), float64, NaN for None."""
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
