"""Alarms: each goes off by its own cause, once, with advice; a run that is well hears none."""

from itertools import count
from math import nan

import pytest

from minirlhf.rl.alarms import SETTLED, Alarms, nothing_learned, surely_below

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
        ({"response/eos_rate": 0.2}, "only 20% of the responses still end by themselves (100% did at first)"),
        ({"policy/entropy_avg": 0.05}, "fell from 0.60 to 0.05 nats"),
        ({"count/flat_groups": 0.75}, "in 75% of the groups"),
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
        {"count/flat_groups": 0.5},
        {"objective/scores_std": 0.0, "count/token_rewards": 8.0},  # the tokens of a response are told apart
    ]
    for changed in fine:
        assert alarms.look(SETTLED + 1, WELL | changed) == []


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


def test_a_reward_that_has_scored_is_not_unused_if_it_does_not_apply_later():
    assert heard([{"reward/a": 1.0}, {"reward/a": nan}, {"reward/a": nan}]) == set()
    assert heard([{"reward/a": nan}, {"reward/a": nan}, {"reward/a": nan}]) == {"unused"}


def test_an_alarm_is_not_raised_again_after_another_one():
    sharp = WELL | {"policy/entropy_avg": 0.05}
    alarms = Alarms(learns_values=True)
    rows = [WELL, sharp, sharp | {"response/repetition": 0.4}, sharp | {"response/eos_rate": 0.2}]
    assert [len(alarms.look(step, row)) for step, row in enumerate(rows, start=1)] == [0, 1, 1, 1]
    assert alarms.said == {"entropy", "repetition", "eos"}


def test_a_row_that_somebody_edited_is_passed_over():
    """A metric that is missing, a text and a number that no float holds; the rows beside them count."""
    odd = [{"episode": 8.0}, WELL | {"policy/entropy_avg": "low"}, WELL | {"response/length": 10**400}]
    rows = [WELL, *odd, WELL | {"response/eos_rate": 0.2}]
    ((step, text),) = Alarms(learns_values=True).replay({"step": i, **row} for i, row in enumerate(rows, start=1))
    assert step == 5
    assert "only 20% of the responses still end" in text


def test_what_is_looked_at_again_is_said_at_its_step():
    """All responses are cut off: eight of them may be by chance, but not in the last iteration."""
    rows = [{"step": step, **WELL, "response/eos_rate": 0.0} for step in (1, 2)]
    ((step, text),) = Alarms(learns_values=True, last=2).replay(rows)
    assert (step, text.partition(",")[0]) == (2, "no response ends by itself")
    assert list(Alarms(learns_values=True).replay(rows)) == []


def test_the_reason_why_nothing_is_learned_comes_with_advice_that_fits_it():
    assert nothing_learned(WELL) == ("", False)
    assert nothing_learned(WELL | {"count/flat_groups": 0.75, "objective/scores_std": 0.0}) == ("", False)
    assert nothing_learned(WELL | {"count/flat_groups": 0.5, "policy/logprob_grad_avg": 0.0})[0]
    none, all_cut = {"count/unscored": 8.0}, {"response/eos_rate": 0.0}
    for row, advice in [
        (none, "see what the rewards need, such as a column of the prompts"),
        (all_cut, "raise sampler.max_new_tokens, or choose another rule"),
        ({}, "look at samples.jsonl and at truncation.rule"),
        ({"count/unscored": 3.0} | all_cut, "look at samples.jsonl and at truncation.rule"),
    ]:
        assert nothing_learned(IDLE | row)[0].endswith(f"so that nothing is learned: {advice}")


@pytest.mark.parametrize(("length", "chance"), [(1.0, False), (2.0, True)])
def test_one_response_that_scored_0_may_be_chance_unless_it_is_only_an_end(length, chance):
    one = {"count/flat_batches": 1.0, "objective/scores_std": nan, "objective/scores": 0.0, "response/length": length}
    assert nothing_learned(WELL | one)[1] is chance


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


# ---- thresholds: what is seen has to matter, and has to be more than chance --------------------------------


def heard(rows, **settings):
    """Names of the alarms that these rows of changes to WELL raise, in order."""
    alarms = Alarms(**({"learns_values": True} | settings))
    for step, row in zip(count(1), rows, strict=False):
        alarms.look(step, WELL | {"episode": 64.0 * step} | row)
    return alarms.said


def test_two_shares_differ_by_three_standard_errors_of_their_difference():
    """.4 and 0 of 64: mean .2, standard error sqrt(2 x .2 x .8 / 64) = .0707, so 5.7 of them; of 8 responses: 2."""
    assert surely_below(0.0, 0.4, 64)
    assert not surely_below(0.0, 0.4, 8)
    assert surely_below(0.5, 0.76, 64)  # mean .63, standard error .08535, three of them .2561
    assert not surely_below(0.5, 0.756, 64)
    assert not surely_below(0.0, 0.0, 64)


@pytest.mark.parametrize(
    ("at_first", "later", "alarms"),
    [
        (0.4, 0.0, {"eos"}),  # below half from the start, and it dies
        (0.4, 0.15, {"eos"}),  # mean .275, standard error .0789, three of them .237
        (0.4, 0.18, set()),  # .0803, three of them .241
        (0.9, 0.5, set()),  # more than half of them still end
        (0.8, 0.4, set()),  # half
        (0.05, 0.0, set()),  # mean .025, standard error .0276
    ],
)
def test_an_end_that_dies_out_is_said_at_any_rate_if_it_is_more_than_chance(at_first, later, alarms):
    assert heard([{"response/eos_rate": at_first}, {"response/eos_rate": later}]) == alarms


def test_few_responses_an_iteration_are_put_together_until_they_are_64():
    """Eight of 16 prompts each: the first four iterations are compared with the latest four."""
    ends = [{"response/eos_rate": rate} for rate in (0.3, 0.5, 0.4, 0.4, 0.1, 0.1, 0.1)]
    assert heard(ends, prompts=16) == set()  # .4, .1, .1, .1 so far
    assert heard([*ends, {"response/eos_rate": 0.1}], prompts=16) == {"eos"}
    assert heard(ends, prompts=16, last=7) == set()
    assert heard([{"response/eos_rate": 1.0}, {"response/eos_rate": 0.0}], prompts=2) == set()  # chance
    assert heard([{"response/eos_rate": 1.0}, {"response/eos_rate": 0.0}], prompts=2, group=32) == {"eos"}


@pytest.mark.parametrize(
    ("at_first", "later", "alarms"),
    [
        (0.03, 0.21, {"repetition"}),  # mean .12, standard error .0574, three of them .172
        (0.03, 0.19, set()),  # less than a fifth
        (0.03, 0.20, set()),  # mean .115, standard error .0564, three of them .169
        (0.15, 0.31, set()),  # twice as much, but mean .23, standard error .0744
        (0.15, 0.40, {"repetition"}),
        (0.40, 0.70, set()),  # less than twice as much, though mean .55, standard error .0879
    ],
)
def test_repetition_has_to_be_a_fifth_twice_as_much_as_before_and_more_than_chance(at_first, later, alarms):
    assert heard([{"response/repetition": at_first}, {"response/repetition": later}]) == alarms


def test_the_entropy_may_fall_to_a_fifth():
    assert heard([{}, {"policy/entropy_avg": 0.13}]) == set()
    assert heard([{}, {"policy/entropy_avg": 0.11}]) == {"entropy"}
    assert heard([{"policy/entropy_avg": 0.5}, {"policy/entropy_avg": 0.1}]) == set()


def test_an_entropy_of_a_thousandth_may_fall_and_one_below_it_is_none():
    assert heard([{"policy/entropy_avg": 1e-3}]) == set()
    assert heard([{"policy/entropy_avg": 1e-3}, {"policy/entropy_avg": 1e-4}]) == {"entropy"}
    assert heard([{"policy/entropy_avg": 0.9e-3}]) == {"entropy"}


@pytest.mark.parametrize(
    ("together", "length", "alarms"),
    [
        (0.7, 60.0, set()),
        (-0.7, 60.0, set()),
        (0.75, 41.0, set()),
        (0.75, 42.0, {"length"}),  # 1.4 times 30
        (0.75, 22.0, set()),
        (0.75, 21.0, {"length"}),  # 0.7 times 30
    ],
)
def test_length_is_no_alarm_unless_it_explains_half_of_the_score_and_has_moved(together, length, alarms):
    row = {"objective/score_length_correlation": together, "response/length": length}
    assert heard([{}, row]) == alarms


def test_flat_groups_are_counted_over_64_groups():
    half, most = {"count/flat_groups": 0.5}, {"count/flat_groups": 0.75}
    assert heard([most], prompts=64, group=4) == {"groups"}
    assert heard([half] * 9, prompts=64, group=4) == set()
    assert heard([most] * 3, prompts=16, group=4) == set()  # 48 of them
    assert heard([most] * 4, prompts=16, group=4) == {"groups"}
    assert heard([most, most, {}, {}, most, {}], prompts=16, group=4) == set()  # .375 on the whole
    assert heard([most], prompts=16, group=4, last=1) == {"groups"}


@pytest.mark.parametrize(
    ("explained", "alarms"),
    [
        ([-0.2] * SETTLED, {"values"}),
        ([-0.2] * (SETTLED - 1), set()),  # too early
        ([-0.2] * 9 + [0.01] + [-0.2] * 9, set()),  # never ten in a row
        ([-0.05] * 40, set()),  # as good as a constant
        ([-9.0] * 4 + [-0.01] * 6, set()),  # an outlier is no measure
        ([-9.0] * 2 + [-0.01] * 3 + [-0.2] * 5, {"values"}),  # median -.15
        ([0.1] + [-0.2] * SETTLED, {"values"}),  # the latest ten
        ([-0.2] * 9 + [0.0], set()),
        ([-0.1] * SETTLED, set()),  # by no more than a tenth
        ([nan] * 40, set()),  # nothing to explain
    ],
)
def test_v_is_of_no_use_if_it_was_worse_than_a_constant_in_each_of_ten_iterations(explained, alarms):
    rows = [{"value/explained_variance": x} for x in explained]
    assert heard(rows) == alarms
    assert heard(rows, learns_values=False) == set()


def test_a_v_of_no_use_is_said_with_its_latest_number():
    alarms = Alarms(learns_values=True)
    rows = [WELL | {"value/explained_variance": x} for x in [-0.2] * 9 + [-0.3]]
    (text,) = [text for step, row in enumerate(rows, start=1) for text in alarms.look(step, row)]
    assert "below 0 in 10 iterations, now -0.30" in text


def test_a_gradient_drowns_from_a_hundred_thousand_times_that_of_the_policy_loss_on():
    assert heard([{"policy/grad_norm": 0.80e5}]) == set()  # beside 0.8
    assert heard([{"policy/grad_norm": 0.81e5}]) == {"drowned"}
    assert heard([{"policy/grad_norm": 0.2, "policy/logprob_grad_avg": 1e-6}]) == {"drowned"}


# Rows of runs that are well, seed 0: `reviews` (128 responses an iteration), `exact` (256, of a given length) and
# `tiny` (8). End rate, repetition, entropy, correlation, length, explained variance, gradient norm, pull of the policy.
HEALTHY = {
    "reviews": (
        (1, 0.035, 0.62, 0.055, 30.1, 0, 0.51, 0.51),
        (1, 0.04, 0.62, -0.072, 29.9, 0.1, 0.6, 0.63),
        (1, 0.027, 0.62, -0.088, 27.2, 0.2, 0.62, 0.7),
        (1, 0.022, 0.67, -0.051, 27.9, 0.29, 0.6, 0.74),
        (1, 0.035, 0.72, 0.05, 27.5, 0.28, 0.66, 0.76),
        (1, 0.02, 0.7, -0.045, 29, 0.31, 0.63, 0.75),
        (1, 0.027, 0.71, 0.038, 28.5, 0.36, 0.63, 0.76),
        (1, 0.026, 0.74, 0.15, 29.3, 0.32, 0.68, 0.72),
        (1, 0.033, 0.71, -0.054, 29.7, 0.36, 0.66, 0.76),
        (1, 0.037, 0.72, -0.16, 30, 0.43, 0.63, 0.74),
        (1, 0.022, 0.74, 0.068, 29.7, 0.37, 0.65, 0.75),
        (1, 0.033, 0.76, 0.072, 30.1, 0.4, 0.68, 0.77),
        (1, 0.025, 0.72, -0.013, 29.5, 0.42, 0.66, 0.76),
        (1, 0.028, 0.71, 0.12, 31.1, 0.42, 0.69, 0.77),
        (0.99, 0.026, 0.72, -0.072, 31, 0.35, 0.72, 0.74),
        (1, 0.029, 0.71, 0.027, 29.1, 0.42, 0.67, 0.78),
    ),
    "exact": (
        (0, 0, 1.1, 0, 3, 0, 0.56, 0.34),
        (0, 0, 1, 0, 3, 0.0013, 0.5, 0.71),
        (0, 0, 0.84, 0, 3, 0.022, 0.43, 0.81),
        (0, 0, 0.75, 0, 3, 0.06, 0.4, 0.82),
        (0, 0, 0.63, 0, 3, 0.024, 0.35, 0.86),
        (0, 0, 0.61, 0, 3, 0.021, 0.35, 0.86),
        (0, 0, 0.62, 0, 3, 0.082, 0.4, 0.83),
        (0, 0, 0.59, 0, 3, 0.039, 0.2, 0.87),
        (0, 0, 0.58, 0, 3, 0.41, 0.2, 0.86),
        (0, 0, 0.59, 0, 3, 0.7, 0.17, 0.73),
        (0, 0, 0.67, 0, 3, 0.85, 0.57, 0.68),
        (0, 0, 0.57, 0, 3, 0.93, 0.24, 0.49),
        (0, 0, 0.58, 0, 3, 0.96, 0.45, 0.73),
        (0, 0, 0.58, 0, 3, 0.99, 0.093, 0.36),
        (0, 0, 0.57, 0, 3, 0.99, 0.18, 0.49),
    ),
    "tiny": (
        (0.12, 0, 5.3, 0, 14.9, nan, 0, 0),
        (0.12, 0, 5.3, 0, 16, 0, 1.7, 0.64),
        (0.12, 0, 5.3, 0, 16, 0.008, 1.7, 0.83),
    ),
}


@pytest.mark.parametrize(("name", "prompts"), [("reviews", 128), ("exact", 256), ("tiny", 8)])
def test_runs_that_are_well_hear_no_alarm(name, prompts):
    keys = (
        *("response/eos_rate", "response/repetition", "policy/entropy_avg", "objective/score_length_correlation"),
        *("response/length", "value/explained_variance", "policy/grad_norm", "policy/logprob_grad_avg"),
    )
    rows = [dict(zip(keys, row, strict=True)) for row in HEALTHY[name]]
    rows = [row | {"episode": float(prompts * step)} for step, row in enumerate(rows, start=1)]
    for row in rows:
        if row["policy/logprob_grad_avg"] == 0:  # of tiny's first eight responses none scores
            row |= {"count/flat_batches": 1.0, "objective/scores": 0.0, "objective/scores_std": 0.0}
    assert heard(rows, prompts=prompts, may_end=name != "exact", last=len(rows)) == set()
