"""Alarms: each goes off by its own cause, once, with advice; a run that is well hears none."""

from math import nan

import pytest

from minirlhf.rl.alarms import SETTLED, Alarms

WELL = {
    "objective/score_length_correlation": 0.3,
    "response/length": 30.0,
    "response/repetition": 0.02,
    "response/eos_rate": 1.0,
    "policy/entropy_avg": 0.6,
    "value/explained_variance": 0.4,
    "objective/scores": 1.0,
    "objective/scores_std": 0.5,
    "policy/logprob_grad_avg": 0.8,
    "policy/grad_norm": 3.0,
    "episode": 8.0,
    "count/updates": 4.0,
    "count/reward_errors": 0.0,
    "count/unscored": 0.0,
    "count/masked_rows": 0.0,
    "count/flat_batches": 0.0,
}
IDLE = WELL | {"count/updates": 0.0, "count/masked_rows": 8.0, "objective/scores": nan, "policy/entropy_avg": nan}


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
        ({"policy/grad_norm": 2e8}, "nearly all of the gradient (norm 2e+08)"),
        ({"policy/logprob_grad_avg": 0.0}, "gradient of the policy loss is 0 although the advantages are not"),
        ({"count/updates": 0.0, "count/masked_rows": 8.0, "response/eos_rate": 0.0}, "all are cut off"),
        ({"count/updates": 0.0, "count/masked_rows": 8.0, "count/unscored": 3.0}, "no response takes part: some have"),
        ({"count/flat_batches": 1.0}, "the advantages of all tokens are 0"),  # although the scores differ
        ({"count/flat_batches": 1.0, "objective/scores_std": nan}, "of a single number"),  # one response that scored 1
        (
            {"count/flat_batches": 1.0, "objective/scores_std": nan, "objective/scores": 0.0, "response/length": 1.0},
            "of a single number",
        ),
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
        {"objective/scores_std": 0.0, "count/token_rewards": 8.0},  # the tokens of a response are told apart
    ]
    for changed in fine:
        assert alarms.look(SETTLED + 1, WELL | changed) == []
    early = Alarms(learns_values=True)
    early.look(1, WELL)
    assert early.look(SETTLED, WELL | {"value/explained_variance": -1.0}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective/scores_std": 0.0, "objective/scores": 0.25}, "the same score (now +0.25)"),
        ({"objective/scores_std": 2e-7, "objective/scores": -0.5}, "the same score (now -0.50)"),  # rounding
        ({"count/flat_batches": 1.0, "objective/scores_std": nan, "objective/scores": 0.0}, "all tokens are 0"),
        ({"response/eos_rate": 0.0}, "no response ends by itself"),
    ],
)
def test_what_may_be_chance_is_said_once_all_of_the_first_16_responses_show_it(changed, said):
    def heard(*iterations):
        alarms = Alarms(learns_values=True)
        return [alarms.look(i + 1, WELL | row | {"episode": 8.0 * (i + 1)}) for i, row in enumerate(iterations)]

    silent, (message,), again = heard(changed, changed, changed)
    assert (silent, again) == ([], [])
    assert said in message
    assert not any(said in text for texts in heard({}, changed, changed) for text in texts)  # the first ones were well
    many = Alarms(learns_values=True)
    assert said in many.look(1, WELL | changed | {"episode": 16.0})[0]
    short = Alarms(learns_values=True, last=1)  # it is the whole run
    assert said in short.look(1, WELL | changed)[0]


def test_a_problem_whose_responses_have_a_length_by_definition_is_not_cut_off():
    assert Alarms(learns_values=True, may_end=False).look(1, WELL | {"response/eos_rate": 0.0, "episode": 99.0}) == []


def test_equal_groups_are_said_once_and_not_again_as_equal_scores():
    alarms = Alarms(learns_values=True)
    row = WELL | {"count/flat_groups": 1.0, "objective/scores_std": 0.0, "count/flat_batches": 1.0, "episode": 64.0}
    (message,) = alarms.look(1, row)
    assert "in 100% of the groups" in message
    assert alarms.look(2, row) == []


def test_an_iteration_without_updates_is_no_measure_for_later_ones_and_a_failed_reward_has_its_own_warning():
    alarms = Alarms(learns_values=True)
    assert alarms.look(1, IDLE | {"count/reward_errors": 1.0, "count/unscored": 8.0}) == []
    (message,) = alarms.look(2, IDLE | {"count/unscored": 8.0, "episode": 64.0})
    assert "nothing is learned" in message
    assert alarms.look(3, WELL | {"policy/entropy_avg": 1.0}) == []
    (message,) = alarms.look(4, WELL | {"policy/entropy_avg": 0.1})
    assert "fell from 1.00 to 0.10" in message


def test_a_reward_that_never_applies_beside_others_is_named_after_128_responses_or_at_the_end():
    row = WELL | {"reward/a": nan, "reward/b": 1.0, "reward/a/detail": nan, "reward/c": nan}
    alarms = Alarms(learns_values=True)
    assert alarms.look(1, row | {"episode": 64.0}) == []
    (message,) = alarms.look(2, row | {"reward/c": 0.0, "episode": 128.0})
    assert "no response so far has a score by a (None each time)" in message
    assert alarms.look(3, row | {"episode": 192.0}) == []
    (message,) = Alarms(learns_values=True, last=1).look(1, row)
    assert "by a, c (" in message


def test_a_policy_that_leaves_nothing_to_chance_is_said_at_once():
    (message,) = Alarms(learns_values=True).look(1, WELL | {"policy/entropy_avg": 2e-4})
    assert "0.0002 nats a token from the start" in message


def test_token_rewards_of_equal_sums_may_teach():
    alarms = Alarms(learns_values=True)
    assert alarms.look(1, WELL | {"objective/scores_std": 0.0, "episode": 64.0, "count/token_rewards": 8.0}) == []
    assert Alarms(learns_values=True).look(1, WELL | {"objective/scores_std": 0.0, "episode": 64.0}) != []


def test_an_iteration_without_a_score_is_chance_if_others_had_some():
    alarms = Alarms(learns_values=True)
    assert alarms.look(1, WELL) == []
    assert alarms.look(2, IDLE | {"count/unscored": 8.0, "episode": 64.0}) == []
    never = Alarms(learns_values=True)
    (message,) = never.look(1, IDLE | {"count/unscored": 8.0, "episode": 64.0})
    assert message.startswith("no reward applies to any")
