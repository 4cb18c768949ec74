"""Pretraining, SFT and reward models stop anywhere and go on to the same bits, with the command that was stopped."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.config.schema import RewardModelConfig, SFTConfig
from minirlhf.errors import CheckpointError
from minirlhf.models.scorer import Scorer
from minirlhf.stages import pretrain, reward_model, sft
from minirlhf.store import progress
from minirlhf.store.files import MANIFEST, complete_directory
from tests.cli.calling import call, done
from tests.cli.test_reward_model import rows
from tests.cli.test_sft import demonstrations
from tests.helpers import small_trunk

# stage -> (module, what it calls once a step, steps to stop at: the first by default, all by `pytest -m crash`)
STAGES = {
    "pretrain": (pretrain, "token_losses", (13, 1, 2, 20)),
    "sft": (sft, "token_losses", (5, 1, 12)),
    "reward model": (reward_model, "bradley_terry", (6, 1, 11)),
}


def stopping(module, name, at, monkeypatch):
    """SIGTERM within the at-th step, once."""
    calls, sound = [], getattr(module, name)

    def call_and_stop(*arguments):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return sound(*arguments)

    monkeypatch.setattr(module, name, call_and_stop)


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory):
    """A run through all stages, but for where its bases and itself are."""
    folder = tmp_path_factory.mktemp("files")
    shown, pairs = demonstrations(folder / "shown.jsonl"), rows(folder / "pairs.jsonl")
    sets = ("sft.epochs=4", "sft.batch_size=10", "reward_model.batch_size=8", "reward_model.epochs=2")
    more = ("reward_model.samples=4", "reward_model.ensemble=2", f"corpus.demonstrations={shown}")
    sets = (*sets, *more, f"corpus.preferences={pairs}")
    return ["run", *tiny, *(part for s in sets for part in ("--set", s)), "--reward", "trained"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    bases = tmp_path_factory.mktemp("whole")
    done(*command, "--set", f"run.bases={bases}", "--out", bases / "run")
    return bases


def made(bases):
    """What the stages left: name -> bytes of every weight."""
    return {str(p.relative_to(bases)): p.read_bytes() for p in sorted(bases.rglob("*.safetensors"))}


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        pytest.param(stage, at, marks=[pytest.mark.crash] if at != steps[0] else [])
        for stage, (_, _, steps) in STAGES.items()
        for at in steps
    ],
)
def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(stage, at, command, whole, tmp_path, monkeypatch):
    module, name, _ = STAGES[stage]
    arguments = (*command, "--set", f"run.bases={tmp_path}")
    with monkeypatch.context() as patch:
        stopping(module, name, at, patch)
        result = call(*arguments, "--out", tmp_path / "run")
    assert (result.code, result.err.splitlines()[-1].partition(";")[0]) == (143, "terminated")
    (going,) = tmp_path.glob(".going-*")
    assert list(going.rglob("state.json"))
    resumed = done("run", "--resume", tmp_path / "run")
    assert "resumed     after step" in resumed.err
    assert not list(tmp_path.glob(".going-*"))
    assert made(tmp_path) == made(whole)


def test_progress_of_other_settings_is_not_used(tmp_path):
    """A stage's state comes back under its own key; under another it begins."""

    def fresh():
        return sft.SFTState.start(small_trunk(), SFTConfig())

    said = []
    state, place = fresh(), progress.progress_directory(tmp_path / "sft-abc")
    assert place == tmp_path / ".going-sft-abc"
    assert progress.load_progress(place, "key", state, said.append) == 0
    state.step, state.tokens = 3, 17
    state.model.norm.weight.data.fill_(2.0)
    progress.save_progress(place, "key", state)
    same = fresh()
    assert progress.load_progress(place, "key", same, said.append) == 3
    assert (same.step, same.tokens, same.model.norm.weight[0]) == (3, 17, 2)
    other = fresh()
    assert progress.load_progress(place, "another key", other, said.append) == 0
    assert (other.step, other.model.norm.weight[0]) == (0, 1)
    assert not place.exists()  # or it would be taken for newer than what is saved next
    assert said == []


def test_damaged_progress_is_passed_over_and_gone(tmp_path):
    said, place = [], tmp_path / ".going-x"
    for step in (9, 2):
        state = sft.SFTState.start(small_trunk(), SFTConfig())
        state.step = step
        progress.save_progress(place, "key", state)
    (place / "step_00000009" / "state.json").write_text("{}")
    assert progress.load_progress(place, "key", state, said.append) == 2
    assert [path.name for path in place.iterdir()] == ["step_00000002"]
    assert "passed over" in said[0]["message"]


def forged(path, name, tensors):
    """Change tensors of a file of saved progress; the manifest fits."""
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST}
    with complete_directory(path) as temporary:
        for file, content in files.items():
            (temporary / file).write_bytes(content)
        save_file(load_file(temporary / name) | tensors, temporary / name)


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("best_weights", {"score.weight": torch.full((1, 16), torch.nan)}, "score.weight is not finite"),
        ("best_weights", {"score.weight": torch.ones(3)}, "score.weight has shape (3,)"),
        ("best_weights", {"other": torch.ones(3)}, "tensors differ by ['other']"),
        ("model", {"score.weight": torch.full((1, 16), torch.inf)}, "score.weight is not finite"),
        ("optimizer", {"0.step": torch.tensor(torch.nan)}, "0.step does not fit the optimizer"),
    ],
)
def test_forged_progress_is_refused_and_nothing_of_it_is_taken(tmp_path, name, tensors, said):
    def fresh():
        return reward_model.RewardModelState.start(Scorer(small_trunk()), RewardModelConfig())

    state, place = fresh(), tmp_path / ".going-x"
    assert state.model.score.weight.shape == (1, 16)
    state.step, state.best_weights = 3, {key: value.clone() for key, value in state.model.state_dict().items()}
    state.model.model.norm.weight.data.fill_(2.0)
    progress.save_progress(place, "key", state)
    forged(place / "step_00000003", f"{name}.safetensors", tensors)
    state = fresh()
    with pytest.raises(CheckpointError) as error:
        progress.load_progress(place, "key", state, print)
    assert said in str(error.value)
    assert (state.step, state.best_weights, state.model.model.norm.weight[0]) == (0, {}, 1)
