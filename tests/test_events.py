"""One line of --json is one event: it is as the schema says, and schema and source name the same events.

Every event that any test of `run`, `pretrain`, `sft` and `reward-model` reads has been held against the printed schema
(tests/cli/calling.py). Here is what the schema refuses, and the events that no other test reads.
"""

import ast
import shutil

import pytest

from minirlhf.events import EVENTS
from tests.cli.calling import done, event_schema
from tests.test_layers import NAMES, nodes, room

OWN_EVENTS = {"studies", "cli"}  # rooms that tell other events than a run's, or none
STEP = {"event": "step", "step": 1, "iterations": 2, "objective/kl": 0.5}


def told(name):
    """The events that a module emits: `event` of its dictionaries."""
    for node in nodes(NAMES[name]):
        if isinstance(node, ast.Dict):
            keys = [getattr(key, "value", None) for key in node.keys]
            yield from (v.value for k, v in zip(keys, node.values, strict=True) if k == "event" and hasattr(v, "value"))


def test_schema_and_source_name_the_same_events():
    """The page of the run directory names them, too (tests/test_docs.py)."""
    emitted = {event for name in NAMES if room(name) not in OWN_EVENTS for event in told(name)}
    assert set(EVENTS) == emitted


def test_a_run_that_goes_on_and_one_that_has_nothing_to_do(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "run")
    assert done("run", "--resume", copy, "--json").events[-1]["event"] == "already_finished"
    (copy / "evaluation.json").unlink()
    kinds = [event["event"] for event in done("run", "--resume", copy, "--json").events]
    assert kinds[:2] == ["run_started", "stage"]
    assert "resumed" in kinds


def test_a_base_that_is_made_and_one_that_is_found(tiny, tmp_path):
    fresh = ("--set", f"run.bases={tmp_path}", "--set", "pretrain.steps=20")
    made, found = (done("pretrain", *tiny, *fresh, "--json").events for _ in range(2))
    assert [event["event"] for event in made] == ["stage", *["pretrain"] * 20, "stage"]
    assert [event["stage"] for event in found] == ["base"]


@pytest.mark.parametrize(
    "change",
    [{"event": "stride"}, {"step": 1.5}, {"step": None}, {"objective/kl": "0.5"}, {"objective/kl": [0.5]}],
    ids=str,
)
def test_a_step_that_is_none(change):
    assert event_schema().is_valid(STEP | {"objective/kl": None})
    assert not event_schema().is_valid(STEP | change)


@pytest.mark.parametrize("name", ["run_started", "stage", "pretrain", "checkpoint", "run_finished"])
def test_a_field_too_many_and_one_too_few(name, finished, tiny, tmp_path):
    event = next((e for e in finished[1] if e["event"] == name), None)
    event = event or {"event": name, "step": 1, "steps": 2, "loss": 1.0, "lr": 0.1, "tokens": 3, "tokens_per_s": 1.0}
    assert event_schema().is_valid(event)
    assert not event_schema().is_valid(event | {"more": 1})
    for field in event.keys() - {"key", "best_of_n", "objective_unknown"}:  # which not every base and not every run has
        assert not event_schema().is_valid({k: v for k, v in event.items() if k != field})
