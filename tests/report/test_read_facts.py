"""Facts of a run, read from directories written by hand: every figure is derived beside its test."""

import json
import math
import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.errors import UsageError
from minirlhf.report.explain import LANGUAGES, explain, true_sentences
from minirlhf.report.read_facts import (
    changed_words,
    facts_of_config,
    facts_of_evaluation,
    facts_of_metrics,
    facts_of_run,
    first_and_last,
    trend_of,
)
from minirlhf.report.run_facts import BestOf, Facts, Side

CONFIG = """
[run]
preset = "mine"
seed = 7
[rewards.friendly]
use = "sentiment"
[rewards.short]
use = "mine.py:short"
weight = -0.5
normalize = true
clip = 2.0
[kl]
estimator = "k1"
place = "both"
coef = 0.1
controller = "adaptive"
target = 3.0
[advantage]
function = "gae"
[loss]
value_coef = 0.3
[ppo]
iterations = 10
[evaluation]
best_of = 16
"""
# Ten iterations of 4 responses. The score goes 0, 1, ..., 9 tenths, the KL twice that: J = 0.8 of it at beta 0.1.
ROWS = [
    {
        "step": i + 1, "episode": 4 * (i + 1), "objective/scores": i / 10, "objective/scores_std": 0.2,
        "objective/kl": i / 5, "kl/coef": 0.2 if i < 5 else 0.1, "reward/friendly": i / 10, "reward/short": i,
        "response/repetition": 0.01 * i, "policy/entropy_avg": 2 - i / 10, "value/explained_variance": i / 20,
        "policy/clipfrac_avg": 0.3 if i == 3 else 0.1, "count/unscored": 1.0, "count/reward_errors": float(i == 6),
    }
    for i in range(10)
]  # fmt: skip
SIDE = {"score_mean": 0.1, "length_mean": 20.0, "eos_rate": 1.0, "distinct_2": 0.5, "distinct_share": 1.0}
EVALUATION = {
    "prompts": 64, "reference": SIDE, "policy": SIDE | {"score_mean": 0.6, "residual_std": None},
    "score_gain": 0.5, "score_gain_ci95": [0.4, 0.6], "win_rate": 0.9, "kl_nats_per_sequence": 2.0, "kl_coef": 0.1,
    "objective": {
        "beta": 0.1, "prompts": 32, "reference": 0.1, "policy": 0.4, "policy_kl": 2.0,
        "best_of_n": [
            {"n": 4, "kl": 0.6, "score": 0.4, "objective": 0.34, "policy_lead_ci95": [0.01, 0.11]},
            {"n": 16, "kl": 1.8, "score": 0.7, "objective": 0.52, "policy_lead_ci95": [-0.2, -0.04]},
        ],
        "policy_gain_ci95": [0.2, 0.4], "verdict": {"against": "best of 16", "outcome": "beaten"},
        "best_known": {"what": "best of 16", "objective": 0.52}, "share_at_most": 0.714, "not_beaten": [16],
    },
}  # fmt: skip


def pairs(before, after, count):
    """Rows of an evaluation of `count` prompts, each with these completions."""
    row = {"stage": "evaluation", "reference": before, "policy": after, "reference_score": 0.0, "policy_score": 0.5}
    return [row | {"prompt": f"prompt {i}", "policy_score": i / 10} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    """Write a run: text of config.toml, rows of metrics.jsonl and samples.jsonl, content of evaluation.json."""

    def write(config=CONFIG, metrics=(), samples=(), evaluation=None):
        (tmp_path / "config.toml").write_text(config)
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        if evaluation is not None:
            (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
        return tmp_path

    return write


def names(run):
    return {sentence.name for sentence in explain(run)}


def test_settings_and_rewards_are_those_of_the_configuration(write):
    facts = facts_of_run(write(metrics=ROWS))
    assert (facts.preset, facts.seed, facts.steps, facts.planned) == ("mine", "7", 10, 10)
    assert (facts.estimator, facts.place, facts.target, facts.advantage, facts.best_of) == ("k1", "both", 3, "gae", 16)
    assert facts.value_coef == 0.3
    assert (facts.beta_first, facts.beta) == (0.2, 0.1)  # the last iteration's, not the one that was set
    assert facts_of_run(write(metrics=ROWS, evaluation={"kl_coef": 0.3})).beta == 0.3  # that of J, moved once more
    friendly, short = facts.rewards
    assert (friendly.name, friendly.weight, friendly.normalize) == ("friendly = sentiment", 1.0, False)
    assert (short.name, short.weight, short.normalize, short.clip) == ("short = mine.py:short", -0.5, True, 2.0)
    assert (short.first, short.last, short.moved) == (0, 8.5, pytest.approx(1))  # a fifth of ten: (8 + 9) / 2
    assert not friendly.worse
    assert short.worse  # it rises, and its weight is negative
    assert facts.normalized == "short"


def test_the_course_is_that_of_the_metrics(write):
    facts = facts_of_run(write(metrics=ROWS))
    course = facts.course
    assert (course.first, course.last) == (0, pytest.approx(0.85))
    assert (course.half, course.most) == (6, 9)  # 0.5 is the first score over 0.425, 0.8 the first over 0.765
    assert course.noise == pytest.approx(math.sqrt(0.2**2 / 4 + 0.2**2 / 8))
    assert (course.fitted, course.trend) == (5, pytest.approx(0.08))
    assert course.end == course.trend > 0
    assert facts.repetition == (0, pytest.approx(0.085))
    assert facts.entropy == (2, pytest.approx(1.15))
    assert facts.explained == pytest.approx(0.425)
    assert (facts.clipped, facts.clipped_most, facts.clipped_at) == (pytest.approx(0.12), 0.3, 4)
    assert (facts.unscored, facts.lost_iterations, facts.kl_last) == (10, 1, pytest.approx(1.7))


def test_responses_to_one_prompt_are_no_independent_ones(write):
    """Four responses an iteration to one prompt: how hard the prompt was does not average out, as if it were one."""
    facts = facts_of_run(write(config=CONFIG.replace("[ppo]\n", "[ppo]\nresponses_per_prompt = 4\n"), metrics=ROWS))
    assert facts.course.noise == pytest.approx(math.sqrt(0.2**2 + 0.2**2 / 2))


def test_equal_scores_are_no_rise(write):
    """(0.1 + 0.1 + 0.1) / 3 is 0.1 and a last bit; its standard error is 0, as the scores do not vary."""
    same = {"objective/scores": 0.1, "objective/scores_std": 0.0, "objective/kl": 0.3}
    facts = facts_of_run(write(metrics=[row | same | {"step": i + 1} for i, row in enumerate([*ROWS, *ROWS][:15])]))
    assert (facts.course.sure, facts.course.end) == (0, 0)
    assert {"flat", "level"} <= {sentence.name for sentence in true_sentences(facts, "en")}


def test_j_is_not_told_by_a_biased_estimator_and_no_course_of_normalised_scores(write):
    assert math.isnan(facts_of_run(write(CONFIG.replace("k1", "abs"), ROWS)).course.trend)
    normalised = facts_of_run(write(CONFIG.replace("[ppo]", "[ppo]\nscore_normalize = true"), ROWS))
    assert math.isnan(normalised.course.last)
    assert not {"rose", "fell", "flat", "level"} & {s.name for s in true_sentences(normalised, "en")}


def test_a_trend_by_hand():
    """Of 0, 0, 1, 0, 0 the slope is 0 and the squares are 4 x 0.04 + 0.64; of 0, 0, 1, 2, 2 it is (2 + 2 x 2) / 10."""
    assert trend_of([0, 0, 1, 0, 0]) == (0, pytest.approx(math.sqrt(0.8 / 3 / 10)))
    slope, error = trend_of([0, 0, 1, 2, 2])
    assert slope == pytest.approx(0.6)
    # the line is -0.2, 0.4, 1, 1.6, 2.2: squares 0.04 + 0.16 + 0 + 0.16 + 0.04 = 0.4
    assert error == pytest.approx(math.sqrt(0.4 / 3 / 10))
    assert math.isnan(trend_of([0, 1, 2, 3])[0])  # too few
    assert trend_of([0.1 + t * 1e-9 for t in range(5)])[0] == 0  # float32 holds no such steps


def test_the_last_fifth_of_twenty_is_four():
    assert first_and_last([{"x": i} for i in range(20)], "x") == (0, 17.5)


def test_a_word_is_named_where_chance_does_not_explain_it():
    """16 pairs in which the later text alone has a word are 16 / sqrt(16) = 4 deviations; 15 are 3.87."""
    assert changed_words([("a film", "A good film.")] * 16) == ("good 0 -> 16", "")
    assert changed_words([("a good film", "a film")] * 16) == ("", "good 16 -> 0")
    assert changed_words([("a film", "a good film")] * 15) == ("", "")
    both_ways = [("bad bad bad", "good")] * 30 + [("good", "bad")] * 6  # 24 / sqrt(36) = 4
    assert changed_words(both_ways) == ("good 6 -> 30", "bad 30 -> 6")
    assert changed_words([("好", "很好")] * 16) == ("很 0 -> 16", "")
    assert changed_words([]) == ("", "")


def test_six_words_are_named_the_surest_first():
    old, new = "x", "a b c d e f g"
    more, _ = changed_words([(old, new)] * 20 + [(old, "g g h")] * 5)
    assert more == "g 0 -> 25, a 0 -> 20, b 0 -> 20, c 0 -> 20, d 0 -> 20, e 0 -> 20"


def test_the_pair_of_the_median_gain_is_shown(write):
    facts = facts_of_run(write(samples=pairs(" a\nfilm ", "", 5)))
    assert facts.pairs == 5
    assert (facts.typical.prompt, facts.typical.before, facts.typical.after) == ("prompt 2", "a film", "(nothing)")
    assert facts.typical.score_after == 0.2
    unscored = [row | {"policy_score": None} for row in pairs("a", "b", 3)]
    assert facts_of_run(write(samples=unscored)).typical is None


def test_an_evaluation_is_read_with_its_objective(write):
    run = write(metrics=ROWS, samples=pairs("a film", "a good film", 64), evaluation=EVALUATION)
    facts = facts_of_run(run)
    assert facts.before == Side(**SIDE)
    assert math.isnan(facts.after.residual_std)  # null
    assert (facts.gain, facts.gain_low, facts.gain_high, facts.kl, facts.cost) == (0.5, 0.4, 0.6, 2.0, 0.2)
    assert (facts.j_reference, facts.j_policy, facts.j_prompts, facts.share) == (0.1, 0.4, 32, 0.714)
    assert facts.best_of_n == (BestOf(4, 0.34, beaten=True), BestOf(16, 0.52, beats=True))
    assert facts.best_known == "best of 16"
    assert {"finished", "gain", "price", "j up", "not beaten", "beaten", "words more", "rose", "share"} <= names(run)
    assert not {"j unmeasured", "residual", "true score up", "exact", "doubt"} & names(run)


def test_intervals_decide_what_was_beaten(write):
    """Of three leads one is surely above 0, one surely below, one neither; `not_beaten` goes by the means alone."""
    ends = {4: [0.1, 0.2], 8: [-0.1, 0.3], 16: [-0.3, -0.1]}
    points = [{"n": n, "objective": 0.3, "policy_lead_ci95": interval} for n, interval in ends.items()]
    objective = EVALUATION["objective"] | {"best_of_n": points, "policy_gain_ci95": [0.2, 0.4]}
    rest = {"true_score_gain_unrewarded": 0.2, "true_score_gain_unrewarded_ci95": [0.1, 0.3]}
    facts = facts_of_run(
        write(metrics=ROWS, evaluation=EVALUATION | {"objective": objective, "true_score_rewarded": ["length"]} | rest)
    )
    assert (facts.beaten, facts.not_told_apart, facts.not_beaten) == (
        *("best of 4 (+0.300)", "best of 8 (+0.300)", "best of 16 (+0.300)"),
    )
    assert (facts.j_low, facts.j_high, facts.j_sure) == (0.2, 0.4, True)
    assert facts.share_sure  # by the intervals of the gain and of best of 16; a file without them has no share to tell
    assert (facts.rest_gain, facts.rest_low, facts.rest_high, facts.rewarded_parts) == (0.2, 0.1, 0.3, "length")


def test_without_an_interval_nothing_is_told_apart_as_the_screen_says(write):
    """One prompt: the verdict is `not told apart`, whatever the means. Nor is a difference of rounding one."""
    point = {"n": 16, "objective": 0.52, "policy_lead_ci95": None}
    unknown = {"policy_gain_ci95": None, "verdict": {"against": "best of 16", "outcome": "not told apart"}}
    objective = EVALUATION["objective"] | unknown | {"best_of_n": [point]}
    for means in ({"policy": 0.4, "not_beaten": [16]}, {"policy": 0.6, "not_beaten": []}, {"policy": 0.05}):
        run = write(metrics=ROWS, evaluation=EVALUATION | {"objective": objective | means})
        facts = facts_of_run(run)
        assert (facts.j_sure, facts.beaten, facts.not_beaten) == (False, "", "")
        assert {"j without interval", "not told apart"} <= names(run)
        assert not {"j up", "j not up", "j unclear", "beaten", "not beaten"} & names(run)
    for ends in ([1e-9, 2e-9], [-2e-9, -1e-9]):
        rounding = objective | {"best_of_n": [point | {"policy_lead_ci95": ends}]}
        assert "not told apart" in names(write(metrics=ROWS, evaluation=EVALUATION | {"objective": rounding}))
    rounding = {"policy_gain_ci95": [1e-9, 2e-9], "verdict": {"against": "reference", "outcome": "not told apart"}}
    run = write(metrics=ROWS, evaluation=EVALUATION | {"objective": objective | rounding | {"best_of_n": []}})
    assert "j unclear" in names(run)


def test_an_objective_that_is_not_known_is_said_to_be_missing(write):
    for objective in (None, 3, {}):
        run = write(metrics=ROWS, evaluation=EVALUATION | {"objective": objective})
        assert "j unmeasured" in names(run)
        assert not {"j up", "not beaten", "beaten", "share"} & names(run)
    run = write(CONFIG.replace("best_of = 16", "best_of = 0"), ROWS, evaluation=EVALUATION | {"objective": None})
    assert "best of n unmeasured" in names(run)
    unknown = {"objective": None, "objective_unknown": "no prompt has a score for every response"}
    texts = {s.name: s.text for s in explain(write(metrics=ROWS, evaluation=EVALUATION | unknown))}
    assert texts["j unknown"] == "J = score - beta KL is not known: no prompt has a score for every response."
    assert "j unmeasured" not in texts


def test_a_problem_of_the_exact_lab(write):
    exact = {"optimality": 0.9, "objective": 1.7, "best": 1.8, "reward": 2.5, "kl": 1.6}
    evaluation = {name: value for name, value in EVALUATION.items() if name != "objective"}
    assert "exact" in names(write(metrics=ROWS, evaluation=evaluation | {"optimality": 0.9, "exact": exact}))
    nothing = evaluation | {"optimality": None, "exact": exact | {"optimality": None}}
    assert "nothing to gain" in names(write(metrics=ROWS, evaluation=nothing))


def test_a_run_that_was_stopped_says_how_far_it_came(write):
    run = write(metrics=ROWS[:3])
    assert {"interrupted", "not evaluated", "kl in training", "go on"} <= names(run)
    assert not {"finished", "gain", "price", "other seeds", "still rising", "level"} & names(run)
    assert {"not begun", "go on"} <= names(write())
    nothing = write(CONFIG.replace("iterations = 10", "iterations = 0"), evaluation=EVALUATION)
    assert "no iterations" in names(nothing)
    assert not {"go on", "other seeds", "interrupted", "median pair"} & names(nothing)


def test_what_the_alarms_and_the_doubts_say_is_said(write):
    """An iteration whose responses repeat themselves: 0.5 is over 0.2 and over twice what it was at first."""
    whole = {
        "count/masked_rows": 0.0, "count/flat_batches": 0.0, "count/updates": 4.0, "policy/logprob_grad_avg": 0.5,
        "policy/grad_norm": 1.0, "response/eos_rate": 1.0, "response/length": 9.0, "objective/scores_std": 0.2,
        "objective/score_length_correlation": 0.0, "count/reward_errors": 0.0, "value/explained_variance": 0.5,
    }  # fmt: skip
    rows = [row | whole for row in ROWS]
    assert "no alarm" in names(write(metrics=rows))
    rows[4] |= {"response/repetition": 0.5}
    run = write(CONFIG.replace('"k1"', '"k3"').replace('"both"', '"reward"'), rows)
    texts = {s.name: s.text for s in explain(run)}
    assert texts["alarm"].startswith("Iteration 5: 50% of the token triples")
    assert texts["doubt"].startswith("Warned before it began: kl k3 in reward: k3 in the reward is not the gradient")
    assert "heed the alarms" in texts


def test_where_there_is_no_run_there_is_nothing_to_explain(tmp_path):
    with pytest.raises(UsageError, match="there is no run in it"):
        facts_of_run(tmp_path)


@pytest.mark.parametrize("config", ["", "x = [", "[rewards]\nfriendly = 3\n[kl]\ncoef = true", "kl = 3\nrewards = 4"])
def test_an_old_run_lacks_keys_and_is_explained_all_the_same(write, config):
    metrics = [{"step": 1}, {"step": 2, "objective/scores": 0.5}]
    for evaluation in (None, {"prompts": 3}):
        facts = facts_of_run(write(config, metrics, [{}], evaluation))
        for language in LANGUAGES:
            texts = [sentence.text for sentence in true_sentences(facts, language)]
            assert len(texts) >= 4
            assert "nan" not in " ".join(texts)


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.floats()))
PLACES = [("evaluation", key) for key in EVALUATION] + [("objective", key) for key in EVALUATION["objective"]]
PLACES += [("policy", key) for key in SIDE] + [(step, key) for step in range(4) for key in ROWS[0] if key != "step"]


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(PLACES), ANYTHING, min_size=1, max_size=6))
def test_whatever_stands_in_the_files_is_no_traceback_and_no_nan(spoilt):
    """Some values of the evaluation and of the metrics are replaced by anything. NaN is the null of the file."""
    evaluation = EVALUATION | {"objective": dict(EVALUATION["objective"]), "policy": dict(EVALUATION["policy"])}
    rows = [dict(row) for row in ROWS[:6]]
    for (place, key), value in spoilt.items():
        target = rows[place] if isinstance(place, int) else evaluation if place == "evaluation" else evaluation[place]
        if isinstance(target, dict):
            target[key] = value
    config = tomllib.loads(CONFIG)
    known = facts_of_config(config, rows) | facts_of_evaluation(evaluation) | facts_of_metrics(rows, config)
    for sentence in true_sentences(Facts(steps=6, planned=6, **known), "en"):
        assert not re.search(r"\bnan\b", sentence.text)
