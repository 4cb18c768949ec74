"""All checks together: every built-in and example passes them; missing options; the command `plugins check`."""

from pathlib import Path

import pytest

from minirlhf.components.registry import load_plugins
from minirlhf.errors import UsageError
from minirlhf.testing import assert_sound, check
from minirlhf.text.corpus import Prompt
from tests.cli.calling import call, done, refused

PLUGINS = Path(__file__).parents[2] / "plugins"
NEED = {"keywords": {"words": ["tea"]}, "regex": {"pattern": "a+"}}  # options that must be given
# Tested elsewhere: they need a column of the exact lab, a saved model, or a package.
ELSEWHERE = {"problem", "trained", "tensorboard", "trackio_log", "wandb_log"}


def ours():
    registry = load_plugins(sorted(str(path) for path in PLUGINS.glob("*.py")))
    return [c for c in registry.listing() if c.name not in ELSEWHERE]


@pytest.mark.parametrize("component", ours(), ids=lambda c: f"{c.kind} {c.name}")
def test_every_built_in_and_example_passes_every_check(component):
    prompts = [Prompt("a prompt", {"source": "the source of it"})]
    findings = list(check(component.build(NEED.get(component.name, {}), device="cpu"), prompts))
    assert [f for f in findings if not f.holds] == []
    assert findings[0].name == "contract"


def test_a_missing_option_is_named_and_is_no_fault_of_the_plugin():
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
    without = call("plugins", "check", file)  # the other component is checked nevertheless
    assert (without.code, len(without.errors)) == (2, 1)
    assert "needs wanted to be given" in without.errors[0]
    assert "kl small of two" in without.out
    refused(2, "plugins", "check", file, "--set", "wnted=a", said=("no component here has an option 'wnted'",))
    broken = call("plugins", "check", file, "--set", "wanted=a", "--set", "rows=5")
    assert broken.code == 5
    assert "info" not in broken.out
