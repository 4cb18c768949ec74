"""Rewards that remember: both sides of an evaluation, and the baseline of a rollout, are judged from one state."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minirlhf.config.layers import load_config
from minirlhf.models.policy import Policy
from minirlhf.pipeline.evaluation import same_score
from minirlhf.pipeline.saved import trained_on
from minirlhf.rl.doubts import changed_score
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
    # So cold a base repeats itself.
    chosen = ("--plugin", NOVELTY, "--reward", "novelty", "--set", "sampler.temperature=0.2")
    done("run", *tiny, *chosen, "--out", tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    del saved["seconds"], saved["made_of"]
    assert saved["reference"]["score_mean"] < 0.9  # it has seen the openings of the training
    again = json.loads(done("evaluate", tmp_path / "run", "--json").out)
    del again["warnings"]
    assert again == saved


def test_no_pass_of_an_evaluation_has_a_critic(tiny, tmp_path, monkeypatch):
    """Nobody reads its values."""
    done("run", *tiny, "--set", "model.separate_critic=true", "--out", tmp_path / "run")
    forward, critics, learned = Policy.forward_pass, [], (tmp_path / "run" / "model" / "value_head.safetensors")
    assert any(name.startswith("critic.") for name in load_file(learned))

    def seen(self, rollout, **options):
        critics.append(self.critic)
        return forward(self, rollout, **options)

    monkeypatch.setattr(Policy, "forward_pass", seen)
    done("evaluate", tmp_path / "run")
    # The policy's responses on the prompts by both models, and those of either side to one prompt by both.
    assert critics == [None] * 6


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


# ---- J -----------------------------------------------------------------------------------------------------


def test_j_and_both_residuals_are_measured_and_a_reason_stands_where_they_are_not(tiny, finished, tmp_path):
    several = (
        "--set",
        "evaluation.residual_prompts=3",
        "--set",
        "evaluation.best_of=16",
        "--set",
        "kl.coef=0.2",
        "--set",
        "ppo.score_clip=999",
    )
    result = done("run", *tiny, "--reward", "length", *several, "--out", tmp_path / "run")
    end = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    found = end["objective"]
    assert (found["beta"], found["prompts"]) == (0.2, 3)
    assert [point["n"] for point in found["best_of_n"]] == [4, 16]
    for point in found["best_of_n"]:
        assert point["objective"] == pytest.approx(point["score"] - 0.2 * point["kl"])
        same = next(p for p in end["best_of_n"] if p["n"] == point["n"])
        assert point["score"] == pytest.approx(same["score"])  # of the same responses
        assert 0 < point["kl"] < same["kl"] + 0.2  # an estimate against its bound
    assert found["policy"] == pytest.approx(found["reference"] + found["policy_gain"])
    assert end["policy"]["residual_std_on_reference"] > 0
    assert "on this objective the run" in result.out.replace("\n", " ")
    assert "best of 16" in result.out
    assert found["score_rules"] == ["ppo.score_clip = 999"]
    assert "its score is after ppo.score_clip = 999" in " ".join(result.out.split())
    assert "Was it beaten?" in (tmp_path / "run" / "report.html").read_text()
    again = json.loads(done("evaluate", tmp_path / "run", "--json", "--set", "evaluation.residual_prompts=0").out)
    assert (again["objective"], again["objective_unknown"][:30]) == (None, "evaluation.residual_prompts = ")
    assert "residual_std" not in again["policy"]
    normalized = json.loads((finished[0] / "evaluation.json").read_text())
    assert normalized["objective"] is None
    assert normalized["objective_unknown"].startswith("ppo.score_normalize")


def test_the_run_is_rewarded_for_what_it_was_trained_on_whatever_the_evaluation_calls(finished, tmp_path):
    paid = trained_on(finished[0])
    assert {label: (reward.use, reward.weight) for label, reward in paid.items()} == {"sentiment": ("sentiment", 1.0)}
    text = '[rewards.tea]\nuse = "keywords"\nweight = 0.5\nwords = ["tea"]\n[rewards.length]\ntarget = 3\n'
    (tmp_path / "config.toml").write_text(text)  # options, which belong to the function, and a label that is a name
    found = {label: (reward.use, reward.weight, reward.options) for label, reward in trained_on(tmp_path).items()}
    assert found == {"tea": ("keywords", 0.5, {"words": ["tea"]}), "length": ("length", 1.0, {"target": 3})}


@pytest.mark.parametrize(
    ("sets", "own"),
    [
        ({}, True),
        ({"kl.coef": "0.3"}, True),
        ({"ppo.score_clip": "1"}, False),
        ({"ppo.score_normalize": "true"}, False),
        ({"truncation.rule": "mask"}, False),
        ({"rewards.problem.weight": "2"}, False),
        ({"rewards.problem.use": "minirlhf:problem"}, True),  # its full name
        ({"loss.entropy_coef": "0.1"}, True),  # another objective, but the score of the problem
    ],
)
def test_the_optimum_of_a_problem_is_that_of_a_run_which_is_paid_its_score_alone(sets, own):
    config, _ = load_config("exact", sets=[f"{key}={value}" for key, value in sets.items()])
    assert (not changed_score(config)) is own
