"""Report on a reward model, which says how far to trust it: accuracy, calibration, margins, score against length.

Not here: the training (reward_model.py), and the file that the report is saved in (preferences.py).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.scorer import Ensemble, Scorer
from minirlhf.rl.metrics import correlation
from minirlhf.stages.reward_model import Pair, accuracy, bradley_terry
from minirlhf.streams import generator

BINS = 10  # of the reliability table
DRAWS = 400  # of the labels of a perfectly calibrated model
GAPS = (0.0, 0.5, 1.0, 2.0)  # lower ends of the rows of `by_gap`, score units


def report(model: Scorer | Ensemble, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Report on a reward model, from held-out pairs.

    Preferences come from the normalised scores, as PPO sees them; probabilities, sigmoid(|d|) of the preferred side,
    from the difference d of the raw scores. (They differ for an ensemble only.)

    With p = probability of the label: accuracy, accuracy_ci95 (Wilson); loss = -p log sigmoid(d) - (1-p) log
    sigmoid(-d), nats per pair; ece = mean |stated - observed probability| over bins, weighted by pairs; ece_floor = its
    expectation for a perfectly calibrated model that states the same, which few labels do not let be 0; reliability:
    pairs, stated probability and share right of each bin, a pair being p right if chosen is preferred, else 1-p;
    margin_mean = mean (2p-1) d, score units; length_correlation = Pearson's, score against tokens of a side;
    longer_wins = accuracy of preferring the longer side. If the pairs know their true gap: ceiling = accuracy of a
    judge who knows it, against these labels; of_ceiling = (accuracy - 0.5) / (ceiling - 0.5), None if ceiling is no
    more than 0.5; by_gap = accuracy against the truth, by size of the gap.

    A tie, p = 0.5, has no right answer: it is left out of accuracy, accuracy_ci95, longer_wins, ceiling and of_ceiling,
    which are None if all pairs are ties. The other measures do not depend on the order of its sides.
    """
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    raw, scores = (x.double().cpu() for x in model.eval().both(sides))
    found, judged = (x[: len(pairs)] - x[len(pairs) :] for x in (raw, scores))
    decided = torch.tensor([not p.tie for p in pairs])
    right, n = accuracy(judged[decided]), int(decided.sum())
    lengths = torch.tensor([float(len(side)) for side in sides], dtype=torch.float64)
    longer = torch.tensor([float(len(p.chosen) - len(p.rejected)) for p in pairs], dtype=torch.float64)
    labels = torch.tensor([p.probability for p in pairs], dtype=torch.float64)
    stated, correct = torch.sigmoid(found.abs()), torch.where(found > 0, labels, 1 - labels)
    table, ece = [], 0.0
    for inside in bins(stated):
        said, was = float(stated[inside].mean()), float(correct[inside].mean())
        table.append({"pairs": int(inside.sum()), "stated": said, "right": was})
        ece += float(inside.double().mean()) * abs(said - was)
    return {
        "pairs": len(pairs),
        "ties": len(pairs) - n,
        "accuracy": measured(right),
        "accuracy_ci95": list(wilson(right, n)) if n else None,
        "loss": float(bradley_terry(found, torch.zeros(()), torch.zeros(()), labels).mean()),
        "ece": ece,
        "ece_floor": ece_floor(stated, labels),
        "reliability": table,
        "margin_mean": float(((2 * labels - 1) * found).mean()),
        "length_correlation": correlation(scores, lengths),
        "longer_wins": measured(accuracy(longer[decided])),
        **against_truth(judged, [p.gap for p in pairs], decided),
    }


def bins(stated: Tensor) -> Iterator[Tensor]:
    """Bins of the reliability table that hold a pair: masks (n,) of stated probabilities (n,), 0.5 to 1."""
    # By number, since the edges 0.55, 0.6, ... are rounded: between two masks a probability could fall into neither.
    numbers = ((stated - 0.5) * (2 * BINS)).long().clamp(0, BINS - 1)
    for number in torch.unique(numbers).tolist():
        yield numbers == number


def ece_floor(stated: Tensor, labels: Tensor) -> float:
    """Expected ece of a perfectly calibrated model that states these probabilities (n,) of the side it prefers.

    Simulated with a fixed seed: a pair is p right with the chance that makes it right by `stated` on average, else
    1 - p, p = the probability (n,) of its label: by 1 with chance `stated` for a label that is certain.
    """
    likelier = torch.maximum(labels, 1 - labels)
    span = (2 * likelier - 1).clamp(min=1e-9)
    chance = ((stated - (1 - likelier)) / span).clamp(0, 1)
    random, total = generator(0, "ece_floor", 0), 0.0
    for inside in bins(stated):
        draws = torch.rand(DRAWS, int(inside.sum()), generator=random) < chance[inside]
        right = torch.where(draws, likelier[inside], 1 - likelier[inside])
        total += float((right - stated[inside]).sum(dim=1).abs().mean())
    return total / len(stated)


def measured(value: float) -> float | None:
    """Value, or None in place of NaN: nothing could be measured."""
    return None if math.isnan(value) else value


def against_truth(found: Tensor, gaps: Sequence[float | None], decided: Tensor) -> dict[str, Any]:
    """Part of the report that compares margins `found` (n,) with true gaps; empty if a gap is not known.

    decided (n,): False for a tie.
    """
    known = [gap for gap in gaps if gap is not None]
    if len(known) < len(gaps):
        return {}
    truth = torch.tensor(known, dtype=torch.float64)
    ceiling, rows = accuracy(truth[decided]), []
    for low, high in zip(GAPS, (*GAPS[1:], math.inf), strict=True):
        inside = (truth.abs() >= low) & (truth.abs() < high) & (truth != 0)
        if bool(inside.any()):
            right = accuracy((found * truth.sign())[inside])
            rows.append({"from": low, "pairs": int(inside.sum()), "right": right})
    share = (accuracy(found[decided]) - 0.5) / (ceiling - 0.5) if ceiling > 0.5 else None
    return {"ceiling": measured(ceiling), "of_ceiling": share, "by_gap": rows}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n: Wilson's, which stays within 0 and 1 for small n."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half
