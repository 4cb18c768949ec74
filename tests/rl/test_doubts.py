"""Doubts: settings by which a run on a problem optimises another objective (the others: config/test_config.py)."""

import pytest

from minirlhf.config.layers import load_config
from minirlhf.rl.doubts import changed_objective, doubts


@pytest.mark.parametrize(
    ("sets", "changed"),
    [
        (["ppo.score_clip=1.5"], "ppo.score_clip = 1.5"),
        (["ppo.score_normalize=true"], "ppo.score_normalize = true"),
        (["truncation.rule=penalty", "truncation.value=1"], "truncation.rule = penalty"),
        (["loss.entropy_coef=0.01"], "loss.entropy_coef = 0.01"),
        (["rewards.problem.weight=2"], "rewards.problem.weight = 2"),
        (["rewards.problem.normalize=true"], "rewards.problem.normalize = true"),
        (["rewards.problem.clip=3"], "rewards.problem.clip = 3"),
        (["rewards.length.use=length"], "rewards = length"),
        (["rewards.problem.weight=1", "rewards.length.use=length"], "rewards = problem, length"),
        (["advantage.gamma=0.9"], "advantage.gamma = 0.9"),
    ],
)
def test_f_says_of_which_objective_it_is_where_the_run_has_another(sets, changed):
    config = load_config("exact", sets=sets)[0]
    assert changed_objective(config) == [changed]
    said = f"that of its own score - 0.5 KL, and this run optimises something else ({changed})"
    assert [text for text in doubts(config) if said in text]


@pytest.mark.parametrize("preset", ["exact", "variance", "lookahead", "leash"])
def test_the_presets_on_problems_optimise_what_f_measures(preset):
    assert changed_objective(load_config(preset)[0]) == []


@pytest.mark.parametrize(
    ("use", "told"), [("mine.py:pretrained", True), ("minirlhf:trained", False), ("trained", False)]
)
def test_comparisons_that_no_reward_is_trained_from(use, told, tmp_path, monkeypatch):
    """A plugin whose name ends like that of the trained reward is another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def pretrained(prompts, completions):\n    return [0.0] * len(prompts)\n")
    config = load_config("tiny", sets=["corpus.preferences=pairs.jsonl", f"rewards.mine.use={use}"])[0]
    assert any(text.startswith("corpus.preferences: no reward is trained") for text in doubts(config)) is told
