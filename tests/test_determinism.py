"""What decides a run's numbers is its configuration: not the process, the folder, the language, the logging."""

import json
import os
import subprocess
import sys

import pytest
import torch

from minirlhf import ppo
from minirlhf.store.checkpoint import all_of
from minirlhf.store.files import verify
from tests.cli.calling import call, done


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes()


def rows(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "eps", "tokens_per_s"))} for row in found]


@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.crash)])
def test_one_seed_in_other_processes_folders_and_languages(count, tiny, finished, tmp_path):
    """The base is made again too: hash seed, folder, language and time zone are others each time."""
    done("run", *tiny, "--out", tmp_path / "here")
    for i in range(count):
        folder = tmp_path / str(i)
        folder.mkdir()
        zone, language = ("Asia/Tokyo", "tr_TR.UTF-8") if i % 2 else ("America/Lima", "C")
        environment = {**os.environ, "PYTHONHASHSEED": str(100 + i), "TZ": zone, "LC_ALL": language, "LANG": language}
        command = ["run", *(str(a) for a in tiny), "--set", "run.bases=bases", "--out", "run"]
        subprocess.run(
            [sys.executable, "-m", "minirlhf", *command], cwd=folder, env=environment, check=True, capture_output=True,
            timeout=120,
        )  # fmt: skip
        assert weights(folder / "run") == weights(tmp_path / "here")
        assert rows(folder / "run") == rows(tmp_path / "here")


def test_looking_changes_nothing(tiny, tmp_path):
    """Evaluation, samples, checkpoints and observers, much or none of it."""
    csv = ("--plugin", "plugins/csv_log.py", "--set", 'run.observers=["csv_log"]')
    much = ("run.checkpoint_every=1", "run.samples=8", "evaluation.prompts=9", "evaluation.residual_prompts=2")
    none = ("run.checkpoint_every=0", "run.samples=0", "run.log_every=9", "evaluation.residual_prompts=0")
    for name, sets, more in (("much", much, csv), ("none", none, ())):
        done("run", *tiny, *(p for s in sets for p in ("--set", s)), *more, "--out", tmp_path / name)
    assert weights(tmp_path / "much") == weights(tmp_path / "none")
    assert rows(tmp_path / "much") == rows(tmp_path / "none")


def test_another_number_of_threads_gives_nearly_the_same(tiny, tmp_path):
    """Sums over many numbers are taken in another order: the same samples, and losses within 1e-4 for 20 updates."""
    sets = ("ppo.iterations=5", "ppo.epochs=2", "ppo.minibatch_size=4")
    for threads in (1, 2):
        settings = (*sets, f"run.threads={threads}")
        done("run", *tiny, *(p for s in settings for p in ("--set", s)), "--out", tmp_path / str(threads))
    torch.set_num_threads(1)
    one, two = (rows(tmp_path / str(threads)) for threads in (1, 2))
    assert sum(row["count/updates"] for row in one) == 20
    for a, b in zip(one, two, strict=True):
        for name in ("loss/policy_avg", "loss/value_avg", "objective/kl", "objective/scores"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), name


# ---- what goes wrong in the middle ------------------------------------------------------------------------


def at_call(number, function, monkeypatch):
    """ppo.update, but `function` in its place at this call."""
    sound, calls = ppo.update, []

    def update(*arguments):
        calls.append(1)
        return function(sound, *arguments) if len(calls) == number else sound(*arguments)

    monkeypatch.setattr(ppo, "update", update)


@pytest.fixture
def saving(tiny, tmp_path):
    sets = ("ppo.iterations=4", "run.checkpoint_every=1")
    return [*tiny, *(part for s in sets for part in ("--set", s))]


def out_of_memory(sound, *arguments):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def spoiled(sound, state, *rest):
    """The step itself leaves a weight that is no number."""
    metrics = sound(state, *rest)
    state.policy.model.norm.weight.data[0] = torch.nan
    return metrics


FAULTS = {
    "memory": (out_of_memory, 1, ("out of memory", "ppo.micro_batch_size", "sampler.max_new_tokens")),
    "weights": (spoiled, 3, ("model.norm.weight is not finite", "iteration 3", "ppo.lr")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_middle_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    name, saving, tmp_path, monkeypatch
):
    function, code, said = FAULTS[name]
    with monkeypatch.context() as patch:
        at_call(3, function, patch)
        result = call("run", *saving, "--out", tmp_path / "run")
    assert (result.code, len(result.errors)) == (code, 1), result.err
    assert "Traceback" not in result.err
    for part in said:
        assert part in result.errors[0]
    newest = all_of(tmp_path / "run" / "checkpoints")[-1]
    assert newest.name == "step_00000002"
    verify(newest)
    assert not (tmp_path / "run" / "model").exists()
    done("run", "--resume", tmp_path / "run")
    done("run", *saving, "--out", tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
