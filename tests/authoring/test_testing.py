"""What `plugins check` and `assert_sound` find: for every check a component that fails it; all of ours pass all."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from minirlhf.components.registry import load_plugins
from minirlhf.errors import UsageError
from minirlhf.testing import METRICS, SUMMARY, assert_sound, check
from minirlhf.text.corpus import Prompt
from tests.cli.calling import call, done, refused
from tests.helpers import built

PLUGINS = Path(__file__).parents[2] / "plugins"
NEED = {"keywords": {"words": ["tea"]}, "regex": {"pattern": "a+"}}  # options without which they say nothing
ELSEWHERE = {"problem", "trained", "tensorboard", "trackio_log", "wandb_log"}  # need the exact lab, a model, a package


def ours():
    registry = load_plugins(sorted(str(path) for path in PLUGINS.glob("*.py")))
    return [c for c in registry.listing() if c.name not in ELSEWHERE]


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


def rotating(completion_ids):
    """One of its tokens gets 1, which depends on the row: the sum does not."""
    return [[float(t == row % len(ids)) for t in range(len(ids))] for row, ids in enumerate(completion_ids)]


def rollout_wide(rollout):
    return [float(rollout.response_ids.shape[1])] * len(rollout)


def picky(completions, *, unit: str = ""):
    """An option that is empty, and a fault that has nothing to do with it."""
    return [float(max(map(ord, text))) for text in completions]


REWARDS = {
    short: {"contract"},
    impatient: {"contract"},  # an empty text
    counting: {"repeatable", "order", "batch"},
    ranked: {"order", "batch"},
    relative: {"batch"},
    wanting: {"row without columns"},
    rotating: {"order", "batch"},
    rollout_wide: {"batch"},  # shorter texts alone are padded less
    picky: {"contract"},
}


@pytest.mark.parametrize("function", REWARDS, ids=lambda f: f.__name__)
def test_a_reward_that_fails(function):
    prompts = [Prompt("a", {"wanted": "tea"})]
    with pytest.raises(AssertionError) as error:
        assert_sound("reward", function, prompts=prompts)
    failed = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert failed == REWARDS[function]


def test_a_reward_that_fails_is_told_for_which_text():
    with pytest.raises(AssertionError, match=r"contract: for the completion '': .* raised ZeroDivisionError"):
        assert_sound("reward", impatient)


def test_the_rollout_is_that_of_the_texts_and_the_ids():
    seen = []

    def looking(prompts, completions, prompt_ids, completion_ids, rollout):
        assert (rollout.prompts, rollout.completions) == (tuple(prompts), tuple(completions))
        for i, ids in enumerate(completion_ids):
            assert rollout.response_ids[i][rollout.mask[i]].tolist() == ids
            assert rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist() == prompt_ids[i]
            assert bytes(b - 3 for b in ids if b > 2) == completions[i].encode()[:64]
            assert bool(rollout.terminated[i]) == (ids[-1] == 2) == (len(completions[i].encode()) < 64)
        seen.append(len(completions))
        return [[float(t) for t in range(len(ids))] for ids in completion_ids]

    assert_sound("reward", looking)
    assert set(seen) == {8, 1}


def test_an_option_that_must_be_given_is_said_and_is_no_fault():
    class Needing:
        def __init__(self, *, words: list[str]):
            self.words = words

        def __call__(self, completions):
            return [float(len(self.words))] * len(completions)

    def wanted(logprobs, ref_logprobs, *, name: str = "", rate: float = 1.0):
        if not name:
            raise ValueError("name what")
        return logprobs - ref_logprobs

    with pytest.raises(UsageError, match=r"needs words to be given: .*; give --set 'words=\[\"...\"\]'"):
        assert_sound("reward", Needing)
    assert_sound("reward", Needing, words=["tea"])
    with pytest.raises(UsageError, match=r"needs name to be given \(name what\)"):
        assert_sound("kl", wanted)
    assert_sound("kl", wanted, name="it")
    with pytest.raises(UsageError, match="asks for wanted"):
        assert_sound("reward", wanting)
    with pytest.raises(UsageError, match=r"asks for completion \(did you mean 'completions'"):
        assert_sound("reward", lambda completion: [0.0 for _ in completion])


def test_of_a_slow_reward_it_is_said_what_an_iteration_would_take(monkeypatch):
    clock = iter(range(100))  # every reading of the clock is a second after the one before
    monkeypatch.setattr("minirlhf.testing.perf_counter", lambda: next(clock))
    *_, time = check(built("reward", lambda completions: [0.0] * len(completions)))
    assert time.found == "125.00 ms a completion: 16 s for an iteration of 128"  # 1 s for eight texts


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


# ---- observers --------------------------------------------------------------------------------------------


class Quiet:
    def start(self, config, run_dir):
        self.file, self.own = run_dir / "log.txt", random.Random(0)

    def step(self, step, experience, metrics):
        self.file.write_text(f"{metrics['objective/scores']} {experience.kl.sum()} {self.own.random()}")

    def finish(self, summary):
        self.file.write_text(f"{summary['policy']['score_mean']}")


class Exclusive(Quiet):
    def start(self, config, run_dir):
        super().start(config, run_dir)
        (run_dir / "mine").open("x").close()


class Absent(Quiet):
    def step(self, step, experience, metrics):
        metrics["no/such"] += 1


class Editing(Quiet):
    def step(self, step, experience, metrics):
        metrics["objective/scores"] = 0.0
        experience.kl.data.mul_(2)


class Summing(Quiet):
    def finish(self, summary):
        del summary["policy"]["score_mean"]


class Drawing(Quiet):
    def step(self, step, experience, metrics):
        torch.rand(1)


class Rolling(Quiet):
    def start(self, config, run_dir):
        random.random()
        super().start(config, run_dir)


OBSERVERS = {
    Quiet: {},
    Exclusive: {"goes on": "FileExistsError"},
    Absent: {"contract": "KeyError"},
    Editing: {"watches": "changes metrics, experience.kl"},
    Summing: {"watches": "changes summary", "goes on": "KeyError"},  # what it deleted is gone
    Drawing: {"random numbers": "takes numbers of torch"},
    Rolling: {"random numbers": "takes numbers of random"},
}


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda c: c.__name__)
def test_an_observer(observer):
    said = ""
    try:
        assert_sound("observer", observer)
    except AssertionError as error:
        said = str(error)
    failed = dict(line.split(": ", 1) for line in said.splitlines())
    assert set(failed) == set(OBSERVERS[observer])
    for name, part in OBSERVERS[observer].items():
        assert part in failed[name]


def test_an_observer_is_tried_with_what_a_run_gives(finished):
    run, _ = finished
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    several = {"step", "objective/residual_std", "count/flat_groups"}  # that run has two responses a prompt
    assert {"reward/friendly" if k.startswith("reward/") else k for k in row} - several == set(METRICS)
    summary = json.loads((run / "evaluation.json").read_text())
    assert set(summary) == set(SUMMARY)
    normalized = {"residual_std"}  # that run normalises its scores, and has none
    assert set(summary["policy"]) == set(SUMMARY["policy"]) - normalized


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
    refused(2, "plugins", "check", "keywords", said=("needs words to be given", "give --set 'words=[\"...\"]'"))
    assert "goes on" in done("plugins", "check", PLUGINS / "csv_log.py").out
    refused(2, "plugins", "check", PLUGINS / "csv_log.py", "--kind", "kl", said=("registers no kl",))
    refused(2, "plugins", "check", "gea", said=("gae",))


def test_the_verdict_of_the_audit_is_shown_and_fails_nothing(tmp_path):
    shown = done("plugins", "check", "k1").out.splitlines()[-3:]
    verdicts = [
        "in reward: the KL of the whole response, exactly",
        "in loss: nothing; its gradient is 0 in expectation",
    ]
    for line, verdict in zip(shown, verdicts, strict=False):
        assert line.startswith(f"  info  audit                 k1 {verdict}")
    file = tmp_path / "two.py"
    file.write_text(
        "from minirlhf import hookimpl\n"
        "def small(logprobs, ref_logprobs, *, rows: int = 6):\n"
        "    return (logprobs - ref_logprobs) if len(logprobs) == rows else 1 / 0\n"
        "def words(completions, *, wanted: str = ''):\n    return [len(text.split(wanted)) for text in completions]\n"
        "@hookimpl\ndef register_kl_estimators():\n    return {'small': small}\n"
        "@hookimpl\ndef register_reward_models():\n    return {'words': words}\n"
    )
    both = done("plugins", "check", file, "--set", "wanted=a", "--set", "rows=6").out
    assert "reward words of two" in both
    assert "  info  audit                 cannot be made: KL estimator 'small' of plugin 'two' raised" in both
    without = call("plugins", "check", file)  # the other one is checked all the same
    assert (without.code, len(without.errors)) == (2, 1)
    assert "needs wanted to be given" in without.errors[0]
    assert "kl small of two" in without.out
    refused(2, "plugins", "check", file, "--set", "wnted=a", said=("no component here has an option 'wnted'",))
    broken = call("plugins", "check", file, "--set", "wanted=a", "--set", "rows=5")
    assert broken.code == 5
    assert "info" not in broken.out
