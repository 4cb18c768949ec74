"""Least spans of the axes of curves: an axis that shows a tiny change at full height turns it into a cliff.

Not here: the drawing (page.js), which widens an axis to its least span around what it shows.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from minirlhf.report.run_files import metric_names, metric_values

# A tenth of all that a share can be, 0 to 1: one more or less of 100 responses is a tenth of the height.
SHARE = 0.1
SHARES = (
    *("policy/clipfrac_avg", "policy/outside_avg", "policy/clamped_avg", "val/clipfrac_avg", "response/eos_rate"),
    *("response/repetition", "exact/optimality", "value/explained_variance", "count/flat_groups"),
)
# The standard error of a correlation of n responses is 1 / sqrt(n): four of them at n = 128 are 0.35.
CORRELATION = 0.35
# Nats a token or a sequence. Two policies a KL of D apart differ by sqrt(D / 2) at most in the probability of anything
# (Pinsker): 0.1 nats of KL to the reference are 22 %; 0.005 nats of approx. KL a token are 5 %.
NATS = {"objective/kl": 0.1, "exact/kl": 0.1, "policy/entropy_avg": 0.1, "policy/approxkl_avg": 0.005}
# Of the largest value, for lengths, speeds, losses and everything else that has no natural unit.
RELATIVE = 0.05
ERRORS = 4  # standard errors, two to each side: the mean of an iteration's scores moves by so much without any reason


def least_spans(runs: Sequence[list[dict[str, Any]]]) -> dict[str, float]:
    """Least span of the axis of every metric of some runs, in its unit; runs: rows of metrics.jsonl, run by run."""
    names = dict.fromkeys(name for metrics in runs for name in metric_names(metrics))
    return {name: least_span(name, runs) for name in names}


def least_span(name: str, runs: Sequence[list[dict[str, Any]]]) -> float:
    """Least span of one metric: by its kind, else RELATIVE of its largest value; of scores at least their noise."""
    if name in SHARES:
        return SHARE
    if name in NATS:
        return NATS[name]
    if name == "objective/score_length_correlation":
        return CORRELATION
    largest = max((abs(x) for x in known(runs, name)), default=0.0)
    return max(RELATIVE * largest, score_noise(runs) if name == "objective/scores" else 0.0)


def score_noise(runs: Sequence[list[dict[str, Any]]]) -> float:
    """ERRORS standard errors of an iteration's mean score: ERRORS std / sqrt(responses); 0 if that is not known."""
    spreads, responses = known(runs, "objective/scores_std"), list[float]()
    for metrics in runs:
        count = metric_values(metrics[-1:], "episode") if metrics else []
        responses += [n / metrics[-1]["step"] for n in count if n and metrics[-1]["step"]]
    return ERRORS * median(spreads) / median(responses) ** 0.5 if spreads and responses else 0.0


def known(runs: Sequence[list[dict[str, Any]]], name: str) -> list[float]:
    """Values of a metric over all iterations of all runs, where it was measured."""
    return [x for metrics in runs for x in metric_values(metrics, name) if x is not None]
