"""The hidden true score: its formula by hand, and what moves it."""

import math

import pytest

from minirlhf.config.schema import Config
from minirlhf.pipeline.evaluation import add_true_scores
from minirlhf.stages.evaluate import Evaluation
from minirlhf.stages.true_score import aspects, true_scores


def test_the_formula_by_hand():
    """`great` counts 1: 2 tanh(1/3); no aspect; no trigram twice; 3 of 30 words: 0.1."""
    assert true_scores(["It was great"])[0] == pytest.approx(2 * math.tanh(1 / 3) + 0.1)
    # The seams and the zipper: two aspects of three. 9 words.
    text = "The seams are brown and the zipper is long."
    assert aspects(text) == {"seams", "zipper"}
    assert true_scores([text])[0] == pytest.approx(4 / 3 + 9 / 30)


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
    add_true_scores(result, Config())
    before, after = (true_scores([side[i] for side in sides]) for i in (0, 1))
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert gains[0] == pytest.approx(4 * math.tanh(1 / 3))
    assert result.summary["reference"]["true_score_mean"] == pytest.approx(sum(before) / 3, abs=1e-6)
    assert result.summary["policy"]["true_score_mean"] == pytest.approx(sum(after) / 3, abs=1e-6)
    assert result.summary["true_score_gain"] == pytest.approx(sum(gains) / 3, abs=1e-6)
    low, high = result.summary["true_score_gain_ci95"]
    assert min(gains) - 1e-6 <= low < sum(gains) / 3 < high <= max(gains) + 1e-6
