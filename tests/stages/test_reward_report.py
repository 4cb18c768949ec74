"""The report on a reward model by hand: certain labels, uncertain ones, ties."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.models.scorer import Ensemble, Scorer
from minirlhf.rl.metrics import correlation
from minirlhf.stages.reward_model import Pair
from minirlhf.stages.reward_report import bins, ece_floor, report, wilson


class Lengths(Scorer):
    """A score of half the number of tokens, and no model."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def scores(self, rows, *, normalised=True):
        return (torch.tensor([len(row) / 2 for row in rows]) - self.mean) / self.std


def test_the_report_by_hand():
    """Margins 1, 1, -1, 0: right 1, 1, 0, 1/2. It says sigmoid(1) = 0.731 of three pairs, of which 2/3 are right, and
    0.5 of the tie, which is not right: ece = 3/4 |0.731 - 2/3| + 1/4 |0.5 - 0|."""
    pairs = [Pair([1] * a, [1] * b, 0.0, 1.0) for a, b in [(4, 2), (6, 4), (2, 4), (3, 3)]]
    found = report(Lengths(), pairs)
    sigmoid = 1 / (1 + math.exp(-1))
    assert found["accuracy"] == pytest.approx(2.5 / 4)
    assert found["ece"] == pytest.approx(0.75 * abs(sigmoid - 2 / 3) + 0.25 * 0.5)
    assert [row["pairs"] for row in found["reliability"]] == [1, 3]
    assert found["margin_mean"] == pytest.approx(0.25)
    assert found["length_correlation"] == pytest.approx(1)
    assert found["longer_wins"] == pytest.approx(2.5 / 4)
    losses = [math.log(1 + math.exp(-m)) for m in (1, 1, -1, 0)]
    assert found["loss"] == pytest.approx(sum(losses) / 4)


def test_a_calibration_error_counts_too_little_and_too_much_alike():
    """Margins 1 (right, twice) and 2 (wrong, twice): it says 0.731 where 1 is right and 0.881 where 0 is. The errors
    0.269 and 0.881 add up; with their signs they would take from each other."""
    pairs = [Pair([1] * a, [1] * b, 0.0, 1.0) for a, b in [(4, 2), (6, 4), (2, 6), (4, 8)]]
    found = report(Lengths(), pairs)
    low, high = (1 / (1 + math.exp(-d)) for d in (1, 2))
    assert found["ece"] == pytest.approx(0.5 * (1 - low) + 0.5 * high)
    assert [(row["stated"], row["right"]) for row in found["reliability"]] == [
        (pytest.approx(low), 1.0),
        (pytest.approx(high), 0.0),
    ]


def test_a_tie_and_an_uncertain_label_by_hand():
    """Margins 1, -2 and, of two ties, 1 and -1. The labels say 1, 0.8, 0.5, 0.5.

    Accuracy of the first two: 1 of 2. Stated 0.731 of three pairs, right 1, 0.5, 0.5; stated 0.881 of one, right 0.2.
    Mean of (2p-1) d: (1 - 0.6 x 2) / 4. Only the chosen side of the first is longer."""
    sizes, labels = [(4, 2), (2, 6), (4, 2), (2, 4)], [1.0, 0.8, 0.5, 0.5]
    pairs = [Pair([1] * a, [1] * b, 0.0, p) for (a, b), p in zip(sizes, labels, strict=True)]
    found = report(Lengths(), pairs)
    assert (found["pairs"], found["ties"], found["accuracy"], found["longer_wins"]) == (4, 2, 0.5, 0.5)
    assert found["accuracy_ci95"] == list(wilson(0.5, 2))
    low, high = (1 / (1 + math.exp(-d)) for d in (1, 2))
    assert [row["pairs"] for row in found["reliability"]] == [3, 1]
    assert [row["right"] for row in found["reliability"]] == pytest.approx([2 / 3, 0.2])
    assert found["ece"] == pytest.approx(0.75 * abs(low - 2 / 3) + 0.25 * abs(high - 0.2))
    assert found["margin_mean"] == pytest.approx(-0.05)
    losses = [-math.log(low), -0.8 * math.log(1 - high) - 0.2 * math.log(high), *[-0.5 * math.log(low * (1 - low))] * 2]
    assert found["loss"] == pytest.approx(sum(losses) / 4)


def test_the_order_of_a_tie_changes_nothing_and_ties_alone_have_no_accuracy():
    sizes = [(4, 2), (2, 6), (3, 3)]
    ties = [[Pair([1] * a, [1] * b, 0.0, 0.5, gap) for a, b in sizes] for gap in (1.0, None)]
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen, gap=-1.0) for p in ties[0]]
    found, other = report(Lengths(), ties[0]), report(Lengths(), turned)
    assert found.pop("length_correlation") == pytest.approx(other.pop("length_correlation"))
    assert found == other
    for name in ("accuracy", "accuracy_ci95", "longer_wins", "ceiling", "of_ceiling"):
        assert found[name] is None
    assert "ceiling" not in report(Lengths(), ties[1])
    certain = Pair([1] * 4, [1] * 2, 0.0, 1.0, 1.0)
    alone, among = report(Lengths(), [certain]), report(Lengths(), [certain, *ties[0]])
    for name in ("accuracy", "accuracy_ci95", "longer_wins", "ceiling", "of_ceiling"):
        assert alone[name] == among[name]


def test_nothing_is_said_of_a_ceiling_that_is_no_more_than_chance():
    """Both labels are wrong: a judge who knows the truth is right on none."""
    found = report(Lengths(), [Pair([1] * 4, [1] * 2, 0.0, 1.0, -1.0)] * 2)
    assert (found["ceiling"], found["of_ceiling"]) == (0, None)


def test_an_ensemble_is_judged_by_what_it_scores_and_states_what_its_members_say():
    """One member says 3 and 0 in tens, the other 0 and 1 in ones: as they are 1.5 against 0.5, normalised 0.15 against
    0.5. A run is given the second."""
    members = [fixed({1: 3.0, 2: 0.0}, std=10.0), fixed({1: 0.0, 2: 1.0}, std=1.0)]
    ensemble = Ensemble(members)
    raw, scored = ensemble.both([[1], [2]])
    assert raw.tolist() == [1.5, 0.5]
    assert scored.tolist() == pytest.approx([0.15, 0.5])
    assert torch.equal(scored, ensemble.each([[1], [2]]).mean(dim=0))
    found = report(ensemble, [Pair([1], [2], 0.0, 1.0)])
    assert found["accuracy"] == 0
    assert found["margin_mean"] == 1


def fixed(scores, std):
    """A scorer that says a number for the first token of a text."""

    class Fixed(Lengths):
        def scores(self, rows, *, normalised=True):
            raw = torch.tensor([scores[row[0]] for row in rows])
            return self.normalised(raw) if normalised else raw

    scorer = Fixed()
    scorer.std.fill_(std)
    return scorer


def test_what_is_really_better_is_held_against_labels_and_model():
    """Margins 1, 1, -1, 2 and true gaps 0.2, -0.3, 0.7, 3: three of four labels are right (the ceiling), and the model
    agrees with three of four. It sides with the truth in the first and the fourth, not in the others."""
    pairs = [Pair([1] * a, [1] * b, 0.0, 1.0, g) for a, b, g in [(4, 2, 0.2), (6, 4, -0.3), (2, 4, 0.7), (7, 3, 3.0)]]
    found = report(Lengths(), pairs)
    assert (found["accuracy"], found["ceiling"], found["of_ceiling"]) == (0.75, 0.75, 1.0)
    assert found["by_gap"] == [
        {"from": 0.0, "pairs": 2, "right": 0.5},
        {"from": 0.5, "pairs": 1, "right": 0.0},
        {"from": 2.0, "pairs": 1, "right": 1.0},
    ]
    assert "ceiling" not in report(Lengths(), [*pairs, Pair([1], [1, 1], 0.0, 1.0)])


def test_intervals_and_correlation_by_hand():
    """Wilson at 8 of 10: (0.8 + z^2/20 +- z sqrt(0.16/10 + z^2/400)) / (1 + z^2/10), z = 1.96: 0.490 to 0.943."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    y = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    assert correlation(x, y) == pytest.approx(1 / math.sqrt(14 / 3 * 2))  # means 7/3 and 2: products sum to 1
    assert correlation(x, torch.ones(3, dtype=torch.float64)) == 0


def test_the_floor_of_the_calibration_error_by_hand():
    """One certain label, stated s: right with chance s, so s (1 - s) + (1 - s) s on average. Two of them, stated 0.6
    (one bin): both right 0.36, one 0.48, none 0.16, so 0.36 x 0.4 + 0.48 x 0.1 + 0.16 x 0.6. In two bins each has its
    own. Many labels: sqrt(2/pi) of the standard error of their share. A label of 0.8 is right by 0.8 or 0.2: stated 0.6
    it is 0.8 with chance 2/3, off by 0.2 or 0.4. Ties are always right by a half."""
    one = torch.ones(1).double()
    # Of 400 draws, whose standard errors are 0.012 at most: the tolerances are three of them.
    assert ece_floor(0.8 * one, one) == pytest.approx(2 * 0.8 * 0.2, abs=0.04)
    both = torch.tensor([0.6, 0.6]).double()
    assert ece_floor(both, torch.ones(2).double()) == pytest.approx(0.288, abs=0.03)
    apart = ece_floor(torch.tensor([0.6, 0.9]).double(), torch.ones(2).double())
    assert apart == pytest.approx((0.48 + 0.18) / 2, abs=0.03)
    many = torch.full((1200,), 0.75).double()
    expected = math.sqrt(2 / math.pi * 0.75 * 0.25 / 1200)
    assert ece_floor(many, torch.ones(1200).double()) == pytest.approx(expected, rel=0.15)
    assert ece_floor(0.6 * one, 0.8 * one) == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.4, abs=0.02)
    assert ece_floor(0.6 * one, 0.2 * one) == ece_floor(0.6 * one, 0.8 * one)  # which side is called chosen
    assert ece_floor(0.5 * one, 0.5 * one) == 0.0
    pairs = [Pair([1] * 4, [1] * 2, 0.0, 1.0)]
    stated = 1 / (1 + math.exp(-1))
    assert report(Lengths(), pairs)["ece_floor"] == pytest.approx(ece_floor(stated * one, one), rel=1e-6)


def test_no_probability_falls_between_two_bins():
    stated = torch.cat([torch.arange(0.5, 1.001, 0.01), torch.tensor([0.8, 0.85, 1.0])]).double()
    counts = torch.stack(list(bins(stated)))
    assert counts.sum(dim=0).tolist() == [1] * len(stated)
    assert len(counts) == 10
