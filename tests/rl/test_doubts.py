"""Doubts: settings by which a run optimises something else than it seems to, or nothing at all."""

import pytest

from minirlhf.config.layers import load_config
from minirlhf.rl.doubts import changed_objective, doubts


def config_of(**named):
    return load_config(**named)[0]


# ---- combinations that optimise something else -------------------------------------------------------------


@pytest.mark.parametrize("place", ["reward", "loss", "both"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "exact"])
def test_a_doubtful_combination_is_said_in_one_sentence(estimator, place):
    """Sound: k1 in the reward (its gradient is the KL's), and k1, k3 or exact in both."""
    sound = {("k1", "reward"), ("k1", "both"), ("k3", "both"), ("exact", "both")}
    said = doubts(config_of(sets=[f"kl.estimator={estimator}", f"kl.place={place}"]))
    assert len(said) == ((estimator, place) not in sound)
    assert doubts(config_of(sets=[f"kl.estimator={estimator}", f"kl.place={place}", "kl.coef=0.0"])) == []


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (["loss.policy=pg"], "no importance ratio"),
        (["advantage.function=grpo", "ppo.responses_per_prompt=4"], "weighs prompts by how little"),
        (["advantage.function=rloo", "ppo.responses_per_prompt=4", "advantage.whiten=batch"], "size of the step"),
        (["advantage.gamma=0.9"], "later KL counts less"),
        (["loss.aggregation=sequence_mean"], "token of a short response weighs more"),
        (
            ["exact.problem=delayed", "rewards.length.use=length"],
            "this run optimises something else (rewards = length)",
        ),
        (["ppo.critic_warmup=40"], "only the value head is trained"),  # of 40 iterations
        (["rewards.sentiment.weight=0.0"], "no score counts"),
        (["ppo.lr=1e-12"], "ppo.lr = 1e-12 is so small that no step changes a weight"),
        (["ppo.grad_clip=1e-12"], "ppo.grad_clip = 1e-12 is so far below Adam's epsilon, 1e-05,"),
    ],
)
def test_what_optimises_something_else_than_asked_is_said_with_the_reason(sets, reason):
    said = doubts(config_of(sets=sets))
    assert len(said) == 1
    assert reason in said[0]


def test_what_is_sound_is_not_doubted():
    once = ["ppo.epochs=1", "ppo.minibatch_size=128", "loss.policy=pg"]
    group = ["ppo.responses_per_prompt=4", "ppo.prompts_per_iteration=32", "advantage.function=rloo"]
    one_of_two = ["rewards.sentiment.weight=0.0", "rewards.length.use=length"]
    warmed, clipped = ["ppo.critic_warmup=39"], ["ppo.grad_clip=1e-6", "ppo.lr=1e-6"]
    kl = ["advantage.gamma=0.9", "kl.place=loss", "kl.estimator=k2", "kl.coef=0.0"]
    for sets in ([], once, group, kl, one_of_two, warmed, clipped, ["ppo.iterations=0"]):
        assert doubts(config_of(sets=sets)) == []


def test_a_loss_without_a_ratio_is_told_how_many_updates_a_rollout_has():
    """5 x 2 responses in minibatches of 4 are three updates an epoch, so nine; all ten in each of two epochs: two."""
    sets = ["loss.policy=pg", "ppo.prompts_per_iteration=5", "ppo.responses_per_prompt=2"]
    (said,) = doubts(config_of(sets=[*sets, "ppo.minibatch_size=4", "ppo.epochs=3"]))
    assert said.startswith("loss pg with 9 updates a rollout")
    (said,) = doubts(config_of(sets=[*sets, "ppo.minibatch_size=10", "ppo.epochs=2"]))
    assert said.startswith("loss pg with 2 updates a rollout")


def test_a_run_of_one_iteration_that_warms_up_learns_nothing():
    (said,) = doubts(config_of(sets=["ppo.iterations=1", "ppo.critic_warmup=1"]))
    assert said.startswith("ppo.critic_warmup = 1 with ppo.iterations = 1: only the value head is trained")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["loss.policy={}:pg"], "loss pg with 8 updates"),
        (["advantage.function={}:grpo", "ppo.responses_per_prompt=4"], "advantage grpo: the division"),
        (["kl.estimator={}:k2"], "kl k2 in reward: k2 in the reward is not"),
    ],
)
def test_what_the_program_brings_is_known_by_its_full_name_and_a_plugin_of_that_name_is_another(
    sets, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def pg(logprobs, advantages):\n    return -logprobs * advantages\n"
        "def grpo(rewards):\n    return rewards\n"
        "def k2(logprobs, ref_logprobs):\n    return (logprobs - ref_logprobs) ** 2 / 2\n"
    )
    (found,) = doubts(config_of(sets=[text.format("minirlhf") for text in sets]))
    assert found.startswith(said)
    assert doubts(config_of(sets=[text.format("mine.py") for text in sets])) == []


# ---- problems of the exact lab, and comparisons ------------------------------------------------------------


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
    assert changed_objective(load_config(preset, sets=["rewards.problem.use=minirlhf:problem"])[0]) == []


@pytest.mark.parametrize(
    ("use", "told"), [("mine.py:pretrained", True), ("minirlhf:trained", False), ("trained", False)]
)
def test_comparisons_that_no_reward_is_trained_from(use, told, tmp_path, monkeypatch):
    """A plugin whose name ends like that of the trained reward is another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def pretrained(prompts, completions):\n    return [0.0] * len(prompts)\n")
    config = load_config("tiny", sets=["corpus.preferences=pairs.jsonl", f"rewards.mine.use={use}"])[0]
    assert any(text.startswith("corpus.preferences: no reward is trained") for text in doubts(config)) is told
