"""Runs in processes of their own: how a code becomes an error, and that none is left behind."""

import json
import os
import sys
from pathlib import Path

import pytest

from minirlhf.errors import CheckpointError, DiskError, DivergedError, PluginError, UsageError
from minirlhf.studies import jobs
from minirlhf.studies.compare import compare
from minirlhf.studies.grid import grid, resolve_cells
from minirlhf.studies.jobs import Children, RunLost, failure

# Children without torch: DIR is their argument, where a run would be.
TALKING = """
import sys
print("a plugin prints")
print("[1]")
print('{"event": "step", "message": "no"}')
print('{"event": "warning", "message": "yes"}')
sys.stderr.write("warning: before\\nerror: it is\\\\x1b over\\n\\n")
sys.exit(3)
"""
WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if DEAF else lambda *_: sys.exit(143))
with open(sys.argv[1] + ".pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".pid.new", sys.argv[1] + ".pid")
for _ in range(2000):
    time.sleep(0.01)
open(sys.argv[1] + ".late", "w").close()
"""


@pytest.fixture
def children_that(monkeypatch):
    """Run this script in place of `minirlhf run`."""

    def use(script):
        monkeypatch.setattr(jobs, "child_command", lambda _, out: [sys.executable, "-I", "-S", "-c", script, str(out)])

    return use


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, UsageError), (3, DivergedError), (4, CheckpointError), (5, PluginError), (6, DiskError)],
)
def test_a_code_is_the_error_that_it_came_from(code, kind, tmp_path):
    log = tmp_path / "log"
    log.write_text("warning: before\nerror: what: where; todo\n\n")
    fault = failure(code, log)
    assert (type(fault), str(fault), fault.exit_code) == (kind, "what: where; todo", code)
    log.write_text("")
    assert str(failure(code, log)) == f"a run ended with exit code {code}"


@pytest.mark.parametrize(
    ("code", "written", "said"),
    [
        (1, "Traceback\nerror: this is a bug\n", "a run ended with exit code 1 (this is a bug)"),
        (-9, "", "a run was killed by signal 9"),
        (143, "terminated\n", "a run ended with exit code 143 (terminated)"),
    ],
)
def test_what_no_user_causes_is_1_and_names_the_file_of_what_was_written(code, written, said, tmp_path):
    log = tmp_path / "log"
    log.write_text(written)
    fault = failure(code, log)
    assert (type(fault), str(fault), fault.exit_code) == (RunLost, f"{said}: what it wrote is in {log}", 1)


def cells(seeds):
    return resolve_cells(grid(["tiny"], {}), seeds, options={}, sets=())


def test_of_a_child_come_its_warnings_and_its_error(children_that, tmp_path):
    children_that(TALKING)
    (cell,), events = cells(1), []
    with pytest.raises(DivergedError) as error:
        Children()(cell.config, cell.registry, tmp_path / "v" / "s0", events.append)
    assert str(error.value) == "it is\\x1b over"
    assert events == [{"event": "warning", "message": "yes"}]
    assert list((tmp_path / "v").iterdir()) == []
    children_that(TALKING.replace("sys.exit(3)", "sys.exit(1)"))
    with pytest.raises(RunLost):
        Children()(cell.config, cell.registry, tmp_path / "v" / "s0", events.append)
    assert "it is" in (tmp_path / "v" / "s0.log").read_text()


def test_a_wait_for_another_process_is_said_at_once_and_one_for_another_child_is_not(children_that, tmp_path):
    """A child that says it waits for itself stands for two children that need the same base."""
    children_that(
        "import json, os\n"
        "for owner in (f'pid {os.getpid()} on here', 'pid 1 on here', 'unknown'):\n"
        "    print(json.dumps({'event': 'warning', 'message': 'waiting', 'owner': owner}))\n"
    )
    (cell,) = cells(1)
    at_once, held_back = [], []
    Children(at_once.append)(cell.config, cell.registry, tmp_path / "v" / "s0", held_back.append)
    assert [event["owner"] for event in at_once] == ["pid 1 on here", "unknown"]
    assert held_back == []


@pytest.mark.parametrize("deaf", [False, True])
def test_an_interrupt_leaves_no_child_behind_and_a_second_one_kills(deaf, children_that, tmp_path):
    children_that(f"DEAF = {deaf}\n{WAITING}")
    pids = [tmp_path / "tiny" / f"s{seed}.pid" for seed in range(3)]

    def emit(event):
        if event["event"] == "cell_started":
            while not all(path.exists() for path in pids[:2]):
                pass
            raise KeyboardInterrupt
        if deaf and "once more: at once" in event.get("message", ""):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"the same command with --out {tmp_path} goes on"):
        compare(cells(3), tmp_path, emit, jobs=2)
    for path in pids[:2]:
        with pytest.raises(ProcessLookupError):  # it is not even a zombie
            os.kill(int(path.read_text()), 0)
    assert {path.name for path in Path(tmp_path, "tiny").iterdir()} == {"s0.pid", "s1.pid"}


def test_after_a_signal_none_begins(children_that, tmp_path):
    children_that("raise SystemExit(0)")
    children, (cell,) = Children(), cells(1)
    children.tell(15)
    with pytest.raises(jobs.Terminated):
        children(cell.config, cell.registry, tmp_path / "s0", json.dumps)
