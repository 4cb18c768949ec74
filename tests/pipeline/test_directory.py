"""The run directory: names of the same second, and file systems without locks, links, or renamed directories."""

import errno
import os
import stat

import pytest

from minirlhf.config.schema import KLConfig, RunConfig
from minirlhf.errors import CheckpointError, DiskError, InputError, UsageError
from minirlhf.pipeline import directory as module
from minirlhf.pipeline.directory import final_beta, run_directory
from minirlhf.store import lock
from minirlhf.store.files import verify
from tests.cli.calling import done
from tests.helpers import OneSecond


def test_two_runs_of_one_second_get_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "datetime", OneSecond)
    settings = RunConfig(preset="tiny", seed=7)
    with (
        run_directory(settings, None, False, print) as (first, _),
        run_directory(settings, None, False, print) as (second, _),
    ):
        assert first == tmp_path / "runs" / "tiny-20260102-030405-s7"
        assert second == tmp_path / "runs" / "tiny-20260102-030405-s7-2"


def test_a_directory_that_was_named_belongs_to_one_run(tmp_path):
    with (
        run_directory(RunConfig(), tmp_path / "it", False, print),
        pytest.raises(UsageError, match="another process works here"),
        run_directory(RunConfig(), tmp_path / "it", False, print),
    ):
        pass


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (InputError("no such model"), []),
        (CheckpointError("the base is not there"), []),
        (DiskError("cannot write"), [".lock", "config.toml"]),  # it is gone on with when there is room
        (OSError("a bug"), [".lock", "config.toml"]),
    ],
)
def test_a_run_that_is_refused_before_it_has_made_anything_leaves_nothing(fault, left, tmp_path):
    out = tmp_path / "it"
    with pytest.raises(type(fault)), run_directory(RunConfig(), out, False, print) as (directory, _):
        (directory / "config.toml").touch()
        raise fault
    assert sorted(path.name for path in tmp_path.rglob("*") if path != out) == left
    if left:  # a resume that is refused removes nothing
        with pytest.raises(InputError), run_directory(RunConfig(), out, True, print):
            raise InputError("no such model")
        assert (out / "config.toml").exists()


def test_what_a_refused_run_has_made_stays(tmp_path):
    with pytest.raises(InputError), run_directory(RunConfig(), tmp_path / "it", False, print) as (directory, _):
        (directory / "config.toml").touch()
        (directory / "metrics.jsonl").touch()
        raise InputError("no such prompt")
    assert (tmp_path / "it" / "config.toml").exists()


def test_a_run_on_an_odd_file_system_ends_as_any_other_with_one_warning(tiny, tmp_path, monkeypatch):
    """No locks, no hard links, directories that can be neither renamed nor flushed, no permission bits."""

    def refuse(number):
        def call(*_, **__):
            raise OSError(number, os.strerror(number))

        return call

    fsync, rename = os.fsync, os.rename
    directory = lambda handle: stat.S_ISDIR(os.stat(handle).st_mode)  # noqa: E731
    monkeypatch.setattr(lock, "_warned", set())
    monkeypatch.setattr(lock.fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", lambda h: refuse(errno.EINVAL)() if directory(h) else fsync(h))
    monkeypatch.setattr(os, "rename", lambda a, b: refuse(errno.EXDEV)() if directory(a) else rename(a, b))
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    monkeypatch.delattr(os, "link")
    sets = (f"run.bases={tmp_path / 'bases'}", "pretrain.steps=2", "ppo.iterations=1")
    more = [part for value in sets for part in ("--set", value)]
    result = done("run", *tiny, *more, "--out", tmp_path / "odd", "--json")
    assert result.events[0]["event"] == "run_started"
    said = [e["message"] for e in result.events if e["event"] == "warning" and "locked" in e["message"]]
    assert len(said) == 1
    (base,) = (path for path in (tmp_path / "bases").iterdir() if path.is_dir())
    for path in (base, tmp_path / "odd" / "model", tmp_path / "odd" / "reference"):
        verify(path)
    reference = tmp_path / "odd" / "reference" / "model.safetensors"
    assert reference.read_bytes() == (base / "model.safetensors").read_bytes()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_the_last_coefficient_is_that_of_the_evaluation_and_never_a_guess(tmp_path):
    adaptive = KLConfig(coef=0.2, controller="adaptive", target=1.0)
    assert final_beta(tmp_path, adaptive) == 0.2
    for content in ("", "{}", '{"kl_coef": NaN}', '{"kl_coef": "0.1"}', '{"kl_coef": null}', "[0.1]"):
        (tmp_path / "evaluation.json").write_text(content)
        assert final_beta(tmp_path, KLConfig(coef=0.2)) == 0.2
        with pytest.raises(InputError, match=r"evaluation\.json"):
            final_beta(tmp_path, adaptive)
    (tmp_path / "evaluation.json").write_text('{"kl_coef": 0.125}')
    assert final_beta(tmp_path, adaptive) == 0.125
