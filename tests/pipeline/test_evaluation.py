"""Rewards that remember: both sides of an evaluation, and the baseline of a rollout, are judged from one state."""

import json
from pathlib import Path

import pytest

from minirlhf.pipeline.evaluation import same_score
from tests.cli.calling import done

NOVELTY = Path(__file__).parents[2] / "plugins" / "novelty.py"
GLOBAL = """
seen = set()

def novel(completions):
    scores = [float(text not in seen) for text in completions]
    seen.update(completions)
    return scores
"""


def test_a_policy_that_is_the_reference_gains_nothing_by_a_reward_that_remembers(tiny, tmp_path):
    chosen = ("--plugin", NOVELTY, "--reward", "novelty", "--set", "ppo.iterations=0")
    result = done("run", *tiny, *chosen, "--out", tmp_path / "run", "--json")
    end = result.events[-1]
    assert end["score_gain"] == 0
    assert end["win_rate"] == 0.5
    assert end["reference"]["residual_std"] == end["policy"]["residual_std"]
    assert not any(
        "judged" in e["message"] or "again" in e["message"] for e in result.events if e["event"] == "warning"
    )


def test_evaluate_judges_by_what_the_reward_remembered_at_the_end_of_the_run(tiny, tmp_path):
    chosen = ("--plugin", NOVELTY, "--reward", "novelty")
    done("run", *tiny, *chosen, "--out", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    del saved["seconds"], saved["made_of"]
    assert saved["reference"]["score_mean"] < 0.9  # it has seen the openings of the training
    again = json.loads(done("evaluate", tmp_path / "run", "--json").out)
    del again["warnings"]
    assert again == saved


def test_a_reward_that_remembers_outside_its_state_is_named(tiny, tmp_path):
    (tmp_path / "novel.py").write_text(GLOBAL)
    chosen = ("--reward", f"{tmp_path}/novel.py:novel", "--reward", "length")
    result = done("run", *tiny, *chosen, "--set", "ppo.iterations=0", "--out", tmp_path / "run", "--json")
    said = [e["message"] for e in result.events if e["event"] == "warning" and "asked again" in e["message"]]
    assert len(said) == 1
    assert "reward 'novel' scores the same responses differently" in said[0]
    assert "reward 'novel' scores the same responses differently" in done("evaluate", tmp_path / "run").err


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [(1.0, 1.0, True), (1.0, 1 + 1e-7, True), (1.0, 1.001, False), (None, None, True), (None, 0.0, False)],
)
def test_two_scores_are_the_same_but_for_rounding(a, b, same):
    assert same_score(a, b) is same
    assert same_score(b, a) is same


def test_an_evaluation_of_files_that_have_changed_since_the_run_says_so(tiny, tmp_path):
    reward, prompts = tmp_path / "short.py", tmp_path / "p.jsonl"
    reward.write_text("def short(completions):\n    return [-float(len(text)) for text in completions]\n")
    prompts.write_text("".join(json.dumps({"prompt": f"the cat {i}"}) + "\n" for i in range(12)))
    out = tmp_path / "run"
    done("run", *tiny, "--reward", f"{reward}:short", "--set", f"corpus.prompts={prompts}", "--out", out)
    assert "changed" not in done("evaluate", out).err
    reward.write_text("def short(completions):\n    return [float(len(text)) for text in completions]\n")
    said = done("evaluate", out).err
    assert f"warning: {reward} has changed since the run" in said
    assert "p.jsonl" not in said
