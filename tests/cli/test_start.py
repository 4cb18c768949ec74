"""What stands between the command and the first iteration, counted: modules, searches for garbage, encoded prompts."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from minirlhf.pipeline.rewards import check_lengths
from minirlhf.rewards.call import RewardModels
from minirlhf.text.corpus import Prompt

WATCH = """
import gc, json, sys
from minirlhf import hookimpl

class watch:
    def start(self, config, run_dir):
        files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        found = {"files": files, "searches": [row["collections"] for row in gc.get_stats()]}
        found |= {"enabled": gc.isenabled(), "frozen": gc.get_freeze_count()}
        (run_dir / "start.json").write_text(json.dumps(found))
    def step(self, step, experience, metrics):
        pass
    def finish(self, summary):
        pass

@hookimpl
def register_observers():
    return {"watch": watch}
"""
# Installed packages that a start needs, and what these import by themselves.
NEEDED = {"click", "pluggy", "pydantic", "safetensors", "tokenizers", "tomli_w", "torch"}
THEIRS = {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection"}  # pydantic's
THEIRS |= {"numpy", "torchgen", "tqdm", "functorch"}  # torch's
# Parts of torch that `import torch` leaves out, and other imports of ours might bring: a second and more.
LEFT_OUT = ("torch._dynamo", "torch._inductor")


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    """State of the process when the first iteration of a run begins; its base exists."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "watch.py").write_text(WATCH)
    more = ("--plugin", folder / "watch.py", "--set", "run.observers=['watch']", "--set", "ppo.iterations=1")
    line = [sys.executable, "-m", "minirlhf", "run", *tiny, *more, "--out", folder / "run", "--json"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "start.json").read_text())


def test_of_the_installed_packages_a_start_loads_those_that_it_needs(start):
    """jinja2 (a chat template, the report), rich (the panel) and the like come with what needs them."""
    places = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    installed = {
        name.partition(".")[0]
        for name, file in start["files"].items()
        if file and name[0] != "_" and any(Path(file).resolve().is_relative_to(place) for place in places)
    }
    assert installed >= NEEDED
    assert installed - NEEDED - THEIRS - {"minirlhf"} == set()
    assert [name for name in start["files"] if name.startswith(LEFT_OUT)] == []


def test_nothing_is_searched_for_garbage_while_modules_are_imported(start):
    """Each full search went through all that torch has made: a tenth of a second, three times."""
    assert start["enabled"]
    assert start["frozen"] > 100_000
    assert start["searches"][2] <= 1


class Mute:
    """A tokenizer that encodes nothing."""

    hash = "one"

    def beginnings(self, prompts, spoken=()):
        raise AssertionError("thousands of prompts are encoded for nothing")


def test_prompts_are_encoded_for_their_length_only_if_a_reward_model_has_one():
    check_lengths(RewardModels([]), Mute(), [Prompt("a")], 8)
