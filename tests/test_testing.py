"""What `plugins check` and `assert_sound` find: for every check a component that fails it; all of ours pass all."""

import itertools
from pathlib import Path

import pytest
import torch

from minirlhf.registry import load
from minirlhf.testing import assert_sound, check
from minirlhf.text.corpus import Prompt
from tests.cli.calling import call, done, refused

PLUGINS = Path(__file__).parents[1] / "plugins"
NEED = {"keywords": {"words": ["tea"]}, "regex": {"pattern": "a+"}}  # options without which they say nothing
ELSEWHERE = {"problem", "trained"}  # need the exact lab, a saved model


def ours():
    registry = load(sorted(str(path) for path in PLUGINS.glob("*.py")))
    return [c for c in registry.listing() if c.kind != "observer" and c.name not in ELSEWHERE]


@pytest.mark.parametrize("component", ours(), ids=lambda c: f"{c.kind} {c.name}")
def test_all_of_ours_pass_all(component):
    prompts = [Prompt("a prompt", {"source": "the source of it"})]
    findings = list(check(component.build(NEED.get(component.name, {}), device="cpu"), prompts))
    assert [f for f in findings if not f.holds] == []
    assert findings[0].name == "contract"


counter = itertools.count()


def short(completions):
    return [1.0] * (len(completions) - 1)


def impatient(completions):
    return [1 / len(text) for text in completions]


def counting(completions):
    return [float(next(counter)) for _ in completions]


def ranked(completions):
    return [float(i) for i, _ in enumerate(completions)]


def relative(completions):
    most = max(len(text) for text in completions)
    return [len(text) / max(1, most) for text in completions]


def wanting(completions, wanted):
    return [float(len(w)) for w in wanted]


REWARDS = {
    short: {"contract"},
    impatient: {"contract"},  # an empty text
    counting: {"repeatable", "order", "batch"},
    ranked: {"order", "batch"},
    relative: {"batch"},
    wanting: {"row without columns"},
}


@pytest.mark.parametrize("function", REWARDS, ids=lambda f: f.__name__)
def test_a_reward_that_fails(function):
    prompts = [Prompt("a", {"wanted": "tea"})]
    with pytest.raises(AssertionError) as error:
        assert_sound("reward", function, prompts=prompts)
    failed = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert failed == REWARDS[function]


def multiplied(logprobs, ref_logprobs, mask):
    return ((logprobs - ref_logprobs) * mask).sum(dim=1, keepdim=True).expand(mask.shape)


def averaged(logprobs, ref_logprobs):
    d = logprobs - ref_logprobs
    return d - torch.zeros_like(d).sum() + d.shape[1]


def first(logprobs, ref_logprobs, mask):
    d = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return d + d[0, 0]


def rooted(logprobs, ref_logprobs, mask):
    d = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return (d - d.detach()).abs().sqrt()


def in_place(logprobs, ref_logprobs):
    ratio = (logprobs - ref_logprobs).exp()
    ratio -= 1
    return ratio


def integer(logprobs, ref_logprobs):
    return (logprobs > ref_logprobs).long()


ESTIMATORS = {
    multiplied: {"padding", "gradient"},
    averaged: {"width"},
    first: {"order"},
    rooted: {"gradient"},
    integer: {"contract"},
    in_place: {"gradient"},
}


@pytest.mark.parametrize("function", ESTIMATORS, ids=lambda f: f.__name__)
def test_an_estimator_that_fails(function):
    with pytest.raises(AssertionError) as error:
        assert_sound("kl", function)
    failed = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert failed == ESTIMATORS[function]


def test_a_loss_that_has_no_gradient():
    def loss(advantages):
        return -advantages

    with pytest.raises(AssertionError, match="compute from logprobs"):
        assert_sound("loss", loss)


# ---- the command ------------------------------------------------------------------------------------------


def test_the_command_names_what_fails_and_what_to_do(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def ranked(completions):\n    return [float(i) for i, _ in enumerate(completions)]\n")
    result = call("plugins", "check", f"{file}:ranked", "--kind", "reward")
    assert result.code == 5
    assert "FAIL  order" in result.out
    assert "-> score each completion by itself" in result.out
    assert result.errors == [f"error: 2 checks failed: {file}:ranked; mend what is marked FAIL above"]


def test_a_file_is_checked_whole_and_options_and_prompts_are_given(tmp_path):
    shown = done("plugins", "check", PLUGINS / "gspo.py").out
    assert shown.startswith("loss gspo of gspo, ")
    assert "FAIL" not in shown
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "source": "b"}\n')
    assert "FAIL" not in done("plugins", "check", PLUGINS / "trl_style.py", "--prompts", prompts).out
    words = ("--set", 'words=["tea"]')
    assert "scores" in done("plugins", "check", "keywords", *words).out
    refused(2, "plugins", "check", PLUGINS / "csv_log.py", said=("there is no component to check",))
    refused(2, "plugins", "check", "gea", said=("gae",))
