"""Summaries of variants: J of an evaluation, and differences to the first variant, by hand."""

import json

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.studies.grid import Variant
from minirlhf.studies.summary import Outcome, measures_of, objective_of, paired_statistics, summary

RUN = {"policy": {"score_mean": 0.5}, "kl_coef": 0.1, "kl_nats_per_sequence": 2.0}


@pytest.mark.parametrize(
    ("more", "value"),
    [
        ({}, None),  # of before evaluations said it: its score and KL would make another J
        ({"objective": {"policy": 0.25}}, 0.25),
        ({"objective": {"policy": None}}, None),
        ({"objective": None}, None),
        ({"objective": {"policy": 0.25}, "exact": {"objective": 0.75}}, 0.75),
    ],
)
def test_the_objective_is_that_of_the_lab_or_of_the_evaluation(more, value):
    assert objective_of({**RUN, **more}) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "more",
    [
        {"policy": {"score_mean": "0.5"}},
        {"kl_nats_per_sequence": None, "seconds": {}},
        {"objective": 3},
        {"objective": {}},
    ],
)
def test_a_damaged_evaluation_is_one_line(tmp_path, more):
    found = {**RUN, "score_gain": 1.0, "seconds": {"ppo": 1.0}, **more}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"evaluation\.json"):
        measures_of(tmp_path)


def test_variants_are_compared_seed_by_seed():
    """Seeds 1, 2 and 4 are in both: differences 3, 1 and 2, mean 2, std 1, standard error 1 / sqrt(3), t 4.3027.

    Over all pairs of seeds the second would be ahead in 7 of 16 only: the seeds differ by more than the variants.
    """
    first = Outcome({seed: {"objective": value} for seed, value in ((0, 9.0), (1, 10.0), (2, 20.0), (4, 0.0))})
    other = Outcome({seed: {"objective": value} for seed, value in ((4, 2.0), (2, 21.0), (3, 5.0), (1, 13.0))})
    row = summary(Variant("tiny", (), "b", "b"), other, first)
    found = row["measures"]["objective"]["minus_first"]
    assert found.pop("ci95") == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4)
    # three: 4.303 x 1 / sqrt(3) = 2.48 > 2; four: 3.182 / 2 = 1.59 < 2
    assert found == {"pairs": 3, "higher": 3, "lower": 0, "mean": 2.0, "std": 1.0, "seeds_to_tell": 4}
    assert "minus_first" not in summary(Variant("tiny", (), "a", "a"), first, first)["measures"]["objective"]


def test_an_interval_ends_where_the_mean_can_not_be():
    """Of 0.9 and 1.0 the mean is 0.95, std 0.1 / sqrt(2), standard error 0.05, t 12.706: half of it 0.6353."""
    values = {"optimality": (0.9, 1.0), "kl_nats_per_sequence": (0.0, 0.1), "objective": (0.9, 1.0)}
    measured = Outcome({seed: {name: both[seed] for name, both in values.items()} for seed in (0, 1)})
    found = summary(Variant("tiny", (), "a", "a"), measured, measured)["measures"]
    assert found["objective"]["ci95"] == pytest.approx([0.3147, 1.5853], abs=1e-4)
    assert found["optimality"]["ci95"] == pytest.approx([0.3147, 1.0], abs=1e-4)  # F is at most 1
    assert found["kl_nats_per_sequence"]["ci95"] == pytest.approx([0.0, 0.6853], abs=1e-4)  # a KL at least 0
    below = Outcome({seed: {"kl_nats_per_sequence": -0.25} for seed in (0, 1)})  # estimates of a small one
    row = summary(Variant("tiny", (), "a", "a"), below, below)["measures"]["kl_nats_per_sequence"]
    assert row["ci95"] == [-0.25, -0.25]


def test_a_seed_without_a_value_is_no_pair_and_rounding_is_no_difference():
    first = Outcome({0: {"objective": None, "score_gain": 1.0}, 1: {"objective": 1.0}})
    other = Outcome({0: {"objective": 2.0, "score_gain": 1.0 + 1e-9}, 1: {"objective": 4.0}})
    measures = summary(Variant("tiny", (), "b", "b"), other, first)["measures"]
    assert measures["objective"]["minus_first"] == {"pairs": 1, "higher": 1, "lower": 0, "mean": 3.0}
    assert measures["score_gain"]["minus_first"] == {"pairs": 1, "higher": 0, "lower": 0, "mean": 0.0}


def test_one_difference_has_no_interval_and_none_has_no_mean():
    assert dict(paired_statistics(torch.tensor([-2.0]))) == {"pairs": 1, "higher": 0, "lower": 1, "mean": -2.0}
    assert dict(paired_statistics(torch.empty(0))) == {"pairs": 0, "higher": 0, "lower": 0, "mean": None}
