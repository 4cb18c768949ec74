"""The hidden true score: its formula by hand, and what moves it."""

import math

import pytest

from minirlhf.builtin.rewards import register_reward_models
from minirlhf.config.schema import Config, RewardConfig
from minirlhf.pipeline.evaluation import add_true_scores
from minirlhf.stages import true_score
from minirlhf.stages.evaluate import Evaluation
from minirlhf.stages.true_score import SHARED_PARTS, aspects, rewarded_parts, seen_by, true_score_parts, true_scores


def test_the_formula_by_hand():
    """`great` counts 1: 2 tanh(1/3); no aspect; no trigram twice; 3 of 30 words: 0.1."""
    assert true_scores(["It was great"])[0] == pytest.approx(2 * math.tanh(1 / 3) + 0.1)
    # The seams and the zipper: two aspects of three. 9 words.
    text = "The seams are brown and the zipper is long."
    assert aspects(text) == {"seams", "zipper"}
    assert true_scores([text])[0] == pytest.approx(4 / 3 + 9 / 30)


def test_the_parts_that_are_rewards_are_those_that_it_is_made_of():
    assert {name for name in register_reward_models() if hasattr(true_score, name)} == set(SHARED_PARTS)
    assert set(SHARED_PARTS) < set(true_score_parts(["a"]))


def test_each_of_its_parts_moves_it():
    plain = "We took it to Rome. It came in a box. The manual is small. My aunt has one, too. We use it on Mondays."
    [score] = true_scores([plain])
    assert true_scores([plain.replace("small", "great")])[0] > score
    assert true_scores([plain.replace("small", "awful")])[0] < score
    assert true_scores([plain.replace("The manual", "The zipper")])[0] == pytest.approx(score + 2 / 3)
    assert true_scores(["We took it to Rome."])[0] < score
    again = "It came in a box. " * 5
    assert true_scores([again])[0] < true_scores([" ".join(plain.split()[:25])])[0] - 1


def test_more_than_three_aspects_count_as_three():
    three, five = "seams zipper soles", "seams zipper soles laces heels"
    difference = true_scores([five])[0] - true_scores([three])[0]
    assert difference == pytest.approx(2 / 30)  # of the length alone


def test_an_evaluation_says_it_of_both_sides_and_of_the_gain():
    sides = [("It was awful", "It was great"), ("We like the zipper", "We like it"), ("a", "a")]
    rows = [{"reference": before, "policy": after} for before, after in sides]
    result = Evaluation(summary={"reference": {}, "policy": {}}, rows=rows)
    add_true_scores(result, Config(), {"sentiment": RewardConfig(use="sentiment")})
    before, after = (true_scores([side[i] for side in sides]) for i in (0, 1))
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert gains[0] == pytest.approx(4 * math.tanh(1 / 3))
    assert result.summary["reference"]["true_score_mean"] == pytest.approx(sum(before) / 3, abs=1e-6)
    assert result.summary["policy"]["true_score_mean"] == pytest.approx(sum(after) / 3, abs=1e-6)
    assert result.summary["true_score_gain"] == pytest.approx(sum(gains) / 3, abs=1e-6)
    mean = sum(gains) / 3
    half = 4.3027 * math.sqrt(sum((x - mean) ** 2 for x in gains) / 2 / 3)  # t of two degrees of freedom
    assert result.summary["true_score_gain_ci95"] == pytest.approx([mean - half, mean + half], abs=1e-3)
    # Of the three gains only the first is of friendly words, and it is nothing else; the second is that of an aspect
    # lost, 2/3, with one word less: 3 and 4 of 30.
    assert result.summary["true_score_rewarded"] == ["sentiment"]
    assert result.summary["true_score_gain_unrewarded"] == pytest.approx((-2 / 3 - 1 / 30) / 3, abs=1e-6)
    unpaid = Evaluation(summary={"reference": {}, "policy": {}}, rows=rows)
    add_true_scores(unpaid, Config(), {"short": RewardConfig(use="mine.py:short")})
    assert unpaid.summary["true_score_rewarded"] == []  # so that there is no gain without it
    assert not [key for key in unpaid.summary if key.startswith("true_score_gain_unrewarded")]
    for side, mean in (("reference", before), ("policy", after)):
        parts = result.summary[side]["true_score_parts"]
        assert list(parts) == ["sentiment", "aspects", "repetition", "length"]
        assert sum(parts.values()) == pytest.approx(sum(mean) / 3, abs=1e-6)
    assert result.summary["reference"]["true_score_parts"]["aspects"] == pytest.approx(2 / 9, abs=1e-6)


def test_what_a_reward_saw_of_it_is_said_as_it_is():
    def rewards(**weights):
        uses = {use.replace("_", ":"): weight for use, weight in weights.items()}
        options = {use: {"target": 30} if use.endswith("length") else {} for use in uses}
        return {use: RewardConfig(use=use, weight=w, options=options[use]) for use, w in uses.items()}

    assert rewarded_parts(rewards(sentiment=1, minirlhf_length=0.5, repetition=0, other_sentiment=1)) == [
        *("sentiment", "length")
    ]
    assert seen_by(rewards(sentiment=1), None) == "sentiment is rewarded in this run, too"
    assert seen_by(rewards(length=1, repetition=1), None) == "repetition and length are rewarded in this run, too"
    said = "the reward model {} from comparisons that the true score judged, with noise"
    assert seen_by(rewards(trained=1), "reviews") == said.format("learned")
    assert seen_by(rewards(trained=1), "mine.jsonl") == said.format("may have learned")
    assert seen_by(rewards(mine=1, sentiment=1), None) == (
        "sentiment is rewarded in this run, too; how much of it the reward mine counts is not known"
    )
    unknown = "how much of it the reward length counts is not known"
    for other in (RewardConfig(use="length"), RewardConfig(use="length", weight=-1, options={"target": 30})):
        assert rewarded_parts({"length": other}) == []  # 40 words, and no 30
        assert seen_by({"length": other}, None) == unknown
    assert seen_by(rewards(mine=0), None) == "no reward of this run computes any of it"
