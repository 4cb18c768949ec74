"""Templates of a new plugin: one file with its test, or a package that can be installed; both run as written.

Placeholders in the templates: NAME, KIND, DASHED (the name with dashes) and USE (the options of `run` that choose it).
Not here: the checks that a generated test calls (check.py).
"""

import builtins
import importlib.util
import keyword
import re
from pathlib import Path

from minirlhf.components.registry import HOOKS
from minirlhf.errors import UsageError
from minirlhf.store.files import write_text

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # a Python module, a component and a key of the config at once

BODIES = {
    "reward": '''def NAME(completions, *, target: int = 20):
    """1 for a completion of `target` words, less the further away: a float each, or None where it does not apply."""
    return [1 / (1 + abs(len(text.split()) - target) / target) for text in completions]
''',
    "kl": '''def NAME(logprobs, ref_logprobs):
    """log pi - log ref of the tokens taken: (B,R) nats a token, differentiable."""
    return logprobs - ref_logprobs
''',
    "advantage": '''def NAME(rewards, values, mask, *, gamma: float = 1.0):
    """Discounted reward from each token on, minus V of its state: (B,R)."""
    total, returns = torch.zeros_like(rewards[:, 0]), []
    for reward in torch.where(mask, rewards, 0.0).flip(1).unbind(1):  # from the last token backwards
        total = reward + gamma * total
        returns.append(total)
    return torch.stack(returns[::-1], dim=1) - values
''',
    "loss": '''def NAME(logprobs, old_logprobs, advantages, mask, *, clip: float = 0.2):
    """-min(A ratio, A clip(ratio, 1 - clip, 1 + clip)), and how often the clip decided: (B,R) a token."""
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-20, 20).exp()
    plain, clipped = advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(plain, clipped), {"clipfrac": (clipped < plain).to(ratio.dtype)}
''',
    "observer": '''class NAME:
    """A line a step in RUN/NAME.txt: its number and the mean score."""

    def start(self, config, run_dir):
        self.file = run_dir / "NAME.txt"

    def step(self, step, experience, metrics):
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{step} {metrics['objective/scores']:.4f}\\n")

    def finish(self, summary):
        pass
''',
}
USES = {
    "reward": "--reward NAME",
    "kl": "--kl NAME",
    "advantage": "--advantage NAME",
    "loss": "--loss NAME",
    "observer": "--set 'run.observers=[\"NAME\"]'",
}
TEST = """from minirlhf.testing import assert_sound

from NAME import NAME


def test_NAME_keeps_its_contract():
    assert_sound("KIND", NAME)
"""
OBSERVER_TEST = """from minirlhf.testing import assert_sound

from NAME import NAME


def test_NAME_writes_a_line_a_step_and_watches(tmp_path):
    assert_sound("observer", NAME)
    observer = NAME()
    observer.start(None, tmp_path)
    observer.step(1, None, {"objective/scores": 0.5})
    observer.finish({})
    assert (tmp_path / "NAME.txt").read_text() == "1 0.5000\\n"
"""
PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "minirlhf-DASHED"
version = "0.1.0"
description = "A plugin for minirlhf: the KIND NAME"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["minirlhf"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.minirlhf]
NAME = "NAME"

[tool.hatch.build.targets.wheel]
include = ["NAME.py"]
"""
README = """# minirlhf-DASHED

The KIND `NAME` for minirlhf.

    pip install -e .                 # in the environment of minirlhf
    minirlhf plugins check NAME
    minirlhf run USE
    pytest                           # pip install -e '.[test]' first
"""


def check_name(name: str) -> None:
    """Raise UsageError unless the name can be a Python module and a component, and hides nothing that exists."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} cannot be the name of a plugin", todo="use small letters, digits and _, a letter first"
        )
    if hasattr(builtins, name) or name in ("hookimpl", "assert_sound") or importlib.util.find_spec(name) is not None:
        raise UsageError(f"{name!r} means something else already", todo="choose another name")


def files_of(name: str, kind: str, *, package: bool) -> dict[str, str]:
    """Build the files of a new plugin: path -> content."""
    imports = "import torch\n" if "torch." in BODIES[kind] else ""
    command = f"minirlhf run {USES[kind]}" if package else f"minirlhf run --plugin NAME.py {USES[kind]}"
    source = (
        f'"""A plugin for minirlhf: the KIND NAME.\n\n    {command}\n"""\n\n'
        f"{imports}from minirlhf import hookimpl\n\n\n{BODIES[kind]}\n\n"
        f'@hookimpl\ndef {HOOKS[kind]}():\n    return {{"NAME": NAME}}\n'
    )
    test = OBSERVER_TEST if kind == "observer" else TEST
    if package:
        root = f"minirlhf-{name.replace('_', '-')}/"
        templates = {f"{root}NAME.py": source, f"{root}test_NAME.py": test}
        templates |= {f"{root}pyproject.toml": PYPROJECT, f"{root}README.md": README}
    else:
        templates = {"NAME.py": source, "test_NAME.py": test}
    # USE stands first: its own text holds NAME, which is filled in last.
    values = {"USE": USES[kind], "DASHED": name.replace("_", "-"), "KIND": kind, "NAME": name}

    def filled(text: str) -> str:
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text

    return {filled(path): filled(content) for path, content in templates.items()}


def write_plugin(folder: Path, name: str, kind: str, *, package: bool) -> list[Path]:
    """Write a new plugin into the folder and return its files.

    Raises UsageError, before anything is written, for a name that cannot be used or a file that exists.
    """
    check_name(name)
    files = {folder / path: content for path, content in files_of(name, kind, package=package).items()}
    for path in files:
        if path.exists():
            raise UsageError("the file exists", str(path), "choose another name, or another folder")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    return list(files)
