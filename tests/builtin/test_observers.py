"""The observer `tensorboard`: its event files read back record by record; a resumed run; a missing package."""

import importlib.util
import struct
from types import SimpleNamespace

import pytest

from minirlhf.builtin.observers import named_scalars, tensorboard
from minirlhf.store.jsonl import read_rows
from minirlhf.testing import assert_sound
from tests.cli.calling import done, refused

CONFIG = SimpleNamespace(ppo=SimpleNamespace(iterations=3))
ON = ("--set", 'run.observers=["tensorboard"]')


def test_numbers_of_a_summary_have_the_path_to_them_as_name():
    summary = {"a": 1, "b": {"c": [0.5, 2.0], "d": "text", "e": None}}
    assert list(named_scalars("x", summary)) == [("x/a", 1.0), ("x/b/c/0", 0.5), ("x/b/c/1", 2.0)]


def shown(folder):
    """{name: [(step, value)]} as TensorBoard shows it: a session that starts at a step hides older points behind it.

    A record is its length (8 bytes), a checksum (4), an Event, a checksum (4).
    """
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {name: [p for p in points if p[0] < event.step] for name, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def life(folder, steps, result=None):
    """Observe one process of a run: these steps with their numbers, then the evaluation if it gets that far."""
    observer = tensorboard()
    observer.start(CONFIG, folder)
    for step, number in steps.items():
        observer.step(step, None, {"objective/kl": number, "lr": 0.5})
    if result is not None:
        observer.finish(result)


def test_it_writes_every_metric_and_hides_what_a_run_that_goes_on_does_again(tmp_path):
    pytest.importorskip("tensorboardX")
    life(tmp_path, {1: 1.0, 2: 2.0, 3: 9.0})  # killed: step 3 is after the last checkpoint
    assert shown(tmp_path / "tensorboard")["objective/kl"] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    life(tmp_path, {3: 3.0})
    life(tmp_path, {}, {"score_gain": 0.25, "policy": {"score_mean": 2.0}})  # only the evaluation was left
    assert shown(tmp_path / "tensorboard") == {
        "objective/kl": [(1, 1.0), (2, 2.0), (3, 3.0)],
        "lr": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "evaluation/score_gain": [(3, 0.25)],
        "evaluation/policy/score_mean": [(3, 2.0)],
    }


def test_a_run_and_its_continuation_have_the_numbers_of_metrics_jsonl(tiny, tmp_path):
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    done("run", *tiny, *ON, "--out", out)
    done("run", "--resume", out, "--set", "ppo.iterations=3")
    curves = shown(out / "tensorboard")
    rows = list(read_rows(out / "metrics.jsonl"))
    assert [step for step, _ in curves["objective/scores"]] == [1, 2, 3]
    for name in rows[0].keys() - {"step"}:
        assert [value for _, value in curves[name]] == pytest.approx([row[name] for row in rows], nan_ok=True)
    assert [step for step, _ in curves["evaluation/score_gain"]] == [2, 3]


def test_without_the_package_nothing_is_begun(tiny, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else real(name))
    refused(2, "run", *tiny, *ON, "--out", tmp_path / "run", said=("pip install 'minirlhf[tensorboard]'",))
    assert list(tmp_path.iterdir()) == []


def test_it_is_sound():
    pytest.importorskip("tensorboardX")
    assert_sound("observer", tensorboard)
