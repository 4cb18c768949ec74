"""Presets: those that stand for something keep to it whatever the default preset becomes."""

import tomllib

import pytest

from minirlhf.config.layers import load_config
from tests.manual import ROOT

PRESETS = {path.stem: path for path in sorted((ROOT / "minirlhf" / "presets").glob("*.toml"))}
DEFAULT = {"reviews", "tiny"}  # the default preset, and smaller
LOOP = {
    *("kl.estimator", "kl.place", "advantage.whiten", "loss.policy"),
    *("ppo.responses_per_prompt", "ppo.minibatch_size", "ppo.epochs", "ppo.lr", "ppo.schedule"),
    *("ppo.iterations", "ppo.prompts_per_iteration"),
}
CRITIC = {"model.separate_critic", "loss.value_coef", "loss.value_clip"}
LEFT_OPEN = {  # what a comparison of the preset varies, or the paper leaves to the model
    "variance": set(),
    "leash": {"loss.policy"},
    "reinforce-pp": {
        *("ppo.minibatch_size", "ppo.epochs", "ppo.lr", "ppo.schedule", "ppo.iterations", "ppo.prompts_per_iteration"),
        *CRITIC,
    },
}


def keys(name):
    """Dotted keys that the preset's own file sets."""
    sections = tomllib.loads(PRESETS[name].read_text(encoding="utf-8"))
    return {f"{section}.{key}" for section, values in sections.items() for key in values}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - DEFAULT))
def test_a_preset_that_stands_for_something_sets_what_it_stands_for_in_its_own_file(name):
    assert (LOOP | CRITIC) - LEFT_OPEN.get(name, set()) - keys(name) == set()


def values(name, *wanted):
    config = load_config(name)[0].model_dump()
    for section in ("advantage", "loss", "kl"):
        config[section] |= config[section]["options"]
    return tuple(config[section][key] for section, key in (w.split(".") for w in wanted))


@pytest.mark.parametrize("name", ["notes", "queries", "notes-8b"])
def test_the_loop_of_the_notes_is_theirs(name):
    """N18: V is a head on the policy's trunk. N19: exact KL, no whitening, no clip, mean (returns - new values)^2."""
    wanted = ("kl.estimator", "advantage.function", "advantage.whiten", "loss.policy", "loss.value_clip", "ppo.epochs")
    assert values(name, *wanted, "model.separate_critic") == ("exact", "gae", "none", "ratio", 0.0, 3, False)
    assert values(name, "kl.place") == (("reward",) if name == "notes" else ("both",))  # the others say why


def test_the_worked_example_of_the_notes_has_their_settings():
    """N20: 4 bits, adapters, 3 epochs, batches of 2, minibatches of 1, 32 new tokens."""
    batches = ("ppo.epochs", "ppo.prompts_per_iteration", "ppo.minibatch_size", "sampler.max_new_tokens")
    assert values("notes-8b", "model.quantise", *batches) == ("nf4", 3, 2, 1, 32)
    assert load_config("notes-8b")[0].lora.on


def test_like_trl_has_the_defaults_of_its_ppo_config():
    """trl/experimental/ppo/ppo_config.py; the value model is the trainer's, Adam's epsilon that of transformers."""
    shared = ("kl.estimator", "kl.coef", "advantage.gamma", "advantage.lam", "advantage.whiten", "loss.clip")
    assert values("like-trl", *shared) == ("k1", 0.05, 1.0, 0.95, "batch", 0.2)
    critic = ("model.separate_critic", "loss.value_coef", "loss.value_clip", "ppo.score_slot")
    assert values("like-trl", *critic) == (True, 0.1, 0.2, "after")
    assert values("like-trl", "ppo.epochs", "ppo.adam_eps", "sampler.temperature") == (4, 1e-8, 0.7)
    one = values("like-trl", "ppo.minibatch_size", "ppo.prompts_per_iteration")
    assert one[0] == one[1]  # num_mini_batches = 1


def test_like_openai_has_the_values_of_its_experiment_sentiment():
    """lm_human_preferences/train_policy.py (PpoHParams), launch.py (sentiment), utils/core.py (minimize)."""
    steered = ("kl.estimator", "kl.coef", "kl.controller", "kl.target", "kl.horizon")
    assert values("like-openai", *steered) == ("k1", 0.15, "adaptive", 6.0, 10_000)
    shared = ("advantage.gamma", "advantage.lam", "advantage.whiten", "loss.clip", "loss.value_coef", "loss.value_clip")
    assert values("like-openai", *shared) == (1.0, 0.95, "population", 0.2, 0.1, 0.2)
    rest = ("model.separate_critic", "ppo.epochs", "ppo.adam_eps", "ppo.score_slot", "sampler.temperature")
    assert values("like-openai", *rest) == (False, 4, 1e-5, "last", 0.7)
    one = values("like-openai", "ppo.minibatch_size", "ppo.prompts_per_iteration")
    assert one[0] == one[1]  # nminibatches = 1


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("notes", ["lambda", "clipped to norm 1", "KL in the reward alone leaves something out"]),
        ("notes-8b", ["rank, lambda, learning rates"]),
        ("like-openai", ["whiten_rewards", "have 24 tokens", "clip gradients", "Batches of 512", "learning rate"]),
        ("like-trl", ["any value model", "clip gradients", "learning rate", "53 tokens"]),
        ("reinforce-pp", ["normalises and clips the scores", "learning rates"]),
    ],
)
def test_the_head_of_a_preset_says_where_it_is_not_what_it_is_called(name, differences):
    text = PRESETS[name].read_text(encoding="utf-8")
    head = " ".join(line.lstrip("# ") for line in text.split("\n[")[0].splitlines())
    _, found, rest = head.partition("Where it is not theirs")
    assert found
    assert [words for words in differences if words not in rest] == []
