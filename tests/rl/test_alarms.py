"""Alarms: each goes off by its own cause, once, with advice; a run that is well hears none."""

import pytest

from minirlhf.rl.alarms import SETTLED, Alarms

WELL = {
    "objective/score_length_correlation": 0.3,
    "response/length": 30.0,
    "response/repetition": 0.02,
    "response/eos_rate": 1.0,
    "policy/entropy_avg": 0.6,
    "value/explained_variance": 0.4,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective/score_length_correlation": 0.9, "response/length": 50.0}, "1.7 times as long"),
        ({"objective/score_length_correlation": -0.9, "response/length": 15.0}, "0.5 times as long"),
        ({"response/repetition": 0.4}, "40% of the token triples"),
        ({"response/eos_rate": 0.2}, "only 20% of the responses still end"),
        ({"policy/entropy_avg": 0.05}, "fell from 0.60 to 0.05 nats"),
        ({"count/flat_groups": 0.75}, "in 75% of the groups"),
        ({"value/explained_variance": -0.5}, "worse than a constant"),
    ],
)
def test_each_goes_off_once_and_alone(changed, said):
    alarms = Alarms(learns_values=True)
    assert alarms.look(1, WELL) == []
    (message,) = alarms.look(SETTLED + 1, WELL | changed)
    assert said in message
    assert alarms.look(SETTLED + 2, WELL | changed) == []


def test_what_is_no_cause_for_alarm():
    alarms = Alarms(learns_values=False)
    alarms.look(1, WELL | {"response/eos_rate": 0.1, "response/repetition": 0.15})
    fine = [
        {"response/eos_rate": 0.1},  # it never ended
        {"response/repetition": 0.25},  # it always repeated itself a little
        {"objective/score_length_correlation": 0.9},  # as long as ever
        {"response/length": 60.0},  # longer, and not for the score
        {"value/explained_variance": -1.0},  # nobody reads V
        {"count/flat_groups": 0.5},
    ]
    for changed in fine:
        assert alarms.look(SETTLED + 1, WELL | changed) == []
    early = Alarms(learns_values=True)
    early.look(1, WELL)
    assert early.look(SETTLED, WELL | {"value/explained_variance": -1.0}) == []
