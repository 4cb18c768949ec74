"""The comparisons of the corpus `reviews`: the generator makes the committed files, and the judge errs as he says."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from minirlhf.stages.true_score import true_scores
from minirlhf.text.comparisons import read_comparisons
from minirlhf.text.corpus import read_prompts

FOLDER = Path(__file__).parents[2] / "corpora" / "reviews"
FILES = ("comparisons.jsonl", "heldout_comparisons.jsonl", "demonstrations.jsonl")


def rows(name):
    return [json.loads(line) for line in (FOLDER / name).read_text("ascii").splitlines()]


@pytest.mark.slow
def test_the_generator_reproduces_the_committed_files_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, FOLDER / "compare.py", "--out", tmp_path], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_they_are_read_under_the_name_of_the_corpus():
    found, notes = read_comparisons("reviews")
    held, more = read_comparisons("reviews", which="heldout_comparisons")
    assert (len(found), len(held), notes, more) == (6000, 1200, [], [])
    assert all(c.gap is None for c in found)  # no run can learn from it
    assert all(c.gap is not None for c in held)


def test_no_held_out_prompt_begins_a_training_pair_or_prompt():
    found, held = read_comparisons("reviews")[0], read_comparisons("reviews", which="heldout_comparisons")[0]
    heldout = {c.prompt for c in held}
    assert not heldout & {c.prompt for c in found}
    assert not heldout & {p.text for p in read_prompts("reviews")}


def test_the_gap_is_the_hidden_score_and_the_labels_are_as_noisy_as_it_says():
    """P(the better side is chosen) = sigmoid(|gap| / 0.6): the number of right labels within four standard errors."""
    held = rows("heldout_comparisons.jsonl")
    chosen, rejected = (true_scores([row[side] for row in held]) for side in ("chosen", "rejected"))
    for row, c, r in zip(held, chosen, rejected, strict=True):
        assert row["gap"] == pytest.approx(c - r, abs=1e-4)
    chances = [1 / (1 + math.exp(-abs(row["gap"]) / 0.6)) for row in held]
    right = sum(row["gap"] > 0 for row in held)
    spread = math.sqrt(sum(p * (1 - p) for p in chances))
    assert abs(right - sum(chances)) < 4 * spread
    assert 0.8 < right / len(held) < 0.95


def test_both_sides_of_a_pair_go_on_from_the_prompt():
    for row in rows("comparisons.jsonl"):
        assert row["chosen"] != row["rejected"]
        for side in ("chosen", "rejected"):
            assert row[side][0] in " ,."
            assert row[side].strip()
