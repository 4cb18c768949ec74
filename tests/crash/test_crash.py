"""Killed at any moment, refused any write: what was saved stays whole, and a resumed run ends in the same bits.

The fast share runs by default; all of it by `pytest -m crash`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from time import monotonic, sleep

import pytest

from minirlhf.store.checkpoint import all_of
from minirlhf.store.files import verify
from tests.cli.calling import call, done
from tests.crash.child import FAULTS, Fault, ended, run_to_its_end, signalled, started

LAST = 6


@pytest.fixture(scope="module")
def arguments(tiny):
    """A run that saves after each of its six iterations."""
    sets = (f"ppo.iterations={LAST}", "run.checkpoint_every=1", "kl.controller=adaptive", "kl.target=0.5")
    return ["run", *tiny, *(part for s in (*sets, "kl.horizon=20") for part in ("--set", s))]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done(*arguments, "--out", out)
    return weights(out)


@pytest.fixture(scope="module")
def longest(arguments, whole, tmp_path_factory):
    """Seconds that a run takes in a process of its own."""
    out = tmp_path_factory.mktemp("timed")
    run_to_its_end(*arguments, "--out", out / "first")
    begun = monotonic()
    assert run_to_its_end(*arguments, "--out", out / "run")[0].code == 0
    return monotonic() - begun


def weights(run):
    return (run / "model" / "model.safetensors").read_bytes() + (run / "model" / "value_head.safetensors").read_bytes()


def shares(few, all_of_them):
    """The number of cases in the default tests, and in `pytest -m crash`."""
    return pytest.mark.parametrize("count", [few, pytest.param(all_of_them, marks=pytest.mark.crash)])


def both_cores(case, seeds):
    """Every case, two at a time: they are processes that wait."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(case, seeds))


def check_whole(run):
    """Nothing stands under a final name that is not complete."""
    for path in all_of(run / "checkpoints"):
        verify(path)
    for name in ("model", "reference"):
        if (run / name).exists():
            verify(run / name)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def finished_again(run, arguments):
    """Go on by the command that one would use; the result, and after which step."""
    command = ["run", "--resume", run] if (run / "config.toml").exists() else [*arguments, "--out", run]
    (result, _) = run_to_its_end(*command)
    assert result.code == 0, result.err
    assert not list(run.rglob(".tmp-*"))
    said = [line for line in result.err.splitlines() if line.startswith("resumed     after step")]
    return result, int(said[0].split()[3].rstrip(":")) if said else 0


@shares(3, 200)
def test_killed_at_random_times(count, arguments, whole, longest, tmp_path):
    """SIGKILL anywhere: at most the iteration after the last save is lost, and the end is the same to the bit."""

    def case(seed):
        run = tmp_path / str(seed)
        signalled(signal.SIGKILL, [*arguments, "--out", run], Random(seed), longest)
        check_whole(run)
        done_before = len([row for row in lines_of(run / "metrics.jsonl") if "step" in row])
        _, step = finished_again(run, arguments)
        assert weights(run) == whole
        assert [row["step"] for row in lines_of(run / "metrics.jsonl")] == list(range(1, LAST + 1))
        shutil.rmtree(run)
        return done_before, step

    found = both_cores(case, range(count))
    assert all(step >= before - 1 for before, step in found if before < LAST), found
    assert count < 100 or len({before for before, _ in found}) == LAST + 1  # kills came at every stage of a run


@shares(2, 50)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_at_random_times(number, count, arguments, whole, longest, tmp_path):
    """It leaves within five seconds with its code and one line, and goes on to the same bits."""

    def case(seed):
        run = tmp_path / str(seed)
        result, seconds = signalled(number, [*arguments, "--out", run], Random(seed), longest)
        assert seconds < 5
        if result is not None:  # None: before the program had begun to listen
            assert result.code in (0, 130 if number == signal.SIGINT else 143)
            assert "Traceback" not in result.err
        check_whole(run)
        finished_again(run, arguments)
        assert weights(run) == whole

    both_cores(case, range(count))


@pytest.fixture(scope="module")
def calls(arguments, tmp_path_factory):
    """System calls of one save that change the disk."""
    (result, count) = run_to_its_end(
        *arguments, "--out", tmp_path_factory.mktemp("count") / "run", fault=Fault(what="count")
    )
    assert result.code == 0
    return count


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("share", ["few", pytest.param("all", marks=pytest.mark.crash)])
def test_every_call_of_a_save_may_fail(share, what, calls, arguments, whole, tmp_path):
    """Killed before it, or no space, an error of the disk, no permission: the checkpoint before is whole."""
    assert calls >= 12

    def case(at):
        run = tmp_path / str(at)
        found = run_to_its_end(*arguments, "--out", run, fault=Fault(at, what))
        check_whole(run)
        assert all_of(run / "checkpoints")[-1].name >= "step_00000002"
        if what == "kill":
            assert found is None
        else:
            result, _ = found
            assert (result.code, len(result.errors)) == (6, 1), f"{at}: {result.err}"
            assert result.errors[0].startswith("error: cannot write (")
        _, step = finished_again(run, arguments)
        assert step >= 2
        assert weights(run) == whole

    both_cores(case, [calls // 2, calls] if share == "few" else range(1, calls + 1))
    print(f"{what}: {calls} calls of a save")


@shares(3, 20)
def test_files_that_cannot_grow(count, arguments, whole, tmp_path):
    """A limit on the size of files, as a full disk is: one line, exit 6, and what was saved before is whole."""

    def case(index):
        run, limit = tmp_path / str(index), int(100 * 1.6**index) if count > 3 else 200 * 50**index
        (result, _) = run_to_its_end(*arguments, "--out", run, fault=Fault(largest=limit))
        if result.code:
            assert (result.code, len(result.errors)) == (6, 1), result.err
            assert "Traceback" not in result.err
        check_whole(run)
        finished_again(run, arguments)
        assert weights(run) == whole
        return result.code

    codes = both_cores(case, range(count))
    assert 6 in codes


def test_two_runs_in_one_directory(arguments, whole, tmp_path):
    """The second is refused at once, naming the first; a killed one leaves no lock."""
    run = tmp_path / "run"
    with started(*arguments, "--set", "ppo.iterations=100000", "--out", run) as (process, _):
        begun = monotonic()
        while not (run / "checkpoints").exists():
            assert monotonic() - begun < 60
        before = monotonic()
        result = call("run", "--resume", run, "--set", "ppo.iterations=100000")
        assert monotonic() - before < 1
        assert (result.code, len(result.errors)) == (2, 1)
        assert f"pid {process.pid} on" in result.errors[0]
    done("run", "--resume", run, "--set", f"ppo.iterations={len(lines_of(run / 'metrics.jsonl')) + 1}")


def test_a_run_whose_directory_somebody_removes(arguments, tmp_path):
    plugin = tmp_path / "remover.py"
    plugin.write_text(
        "import shutil\nfrom minirlhf import hookimpl\n\n"
        "class Remover:\n"
        "    def start(self, config, run_dir): self.run_dir = run_dir\n"
        "    def step(self, step, experience, metrics): shutil.rmtree(self.run_dir, ignore_errors=True)\n"
        "    def finish(self, summary): pass\n\n"
        "@hookimpl\ndef register_observers():\n    return {'remover': Remover}\n"
    )
    more = ("--plugin", plugin, "--set", 'run.observers=["remover"]', "--out", tmp_path / "run")
    result = call(*arguments, *more)
    assert (result.code, len(result.errors)) == (6, 1), result.err
    assert "No such file or directory" in result.errors[0]


PYTHON = f"{sys.executable} -m minirlhf"


def shell(command):
    root = Path(__file__).parents[2]
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, cwd=root)


@pytest.mark.crash
def test_a_reader_that_goes_away(arguments, tmp_path):
    """`| head -1`: no traceback, and not the code of a bug."""
    command = " ".join(f"'{a}'" for a in arguments)
    piped = shell(f"({PYTHON} {command} --json --out {tmp_path}/a; echo code $? >&2) | head -1")
    assert json.loads(piped.stdout)["event"] == "run_started"
    assert piped.stderr.splitlines()[-1] == "code 141"
    assert "Traceback" not in piped.stderr


@pytest.mark.crash
def test_no_stderr_at_all(arguments, tmp_path):
    command = " ".join(f"'{a}'" for a in arguments)
    closed = shell(f"{PYTHON} {command} --out {tmp_path}/b 2>&-")
    assert closed.returncode == 0
    assert "score gain" in closed.stdout
    assert "iteration" not in closed.stdout  # progress, which belongs to stderr


@pytest.mark.crash
def test_no_stdout_at_all(arguments, tmp_path):
    command = " ".join(f"'{a}'" for a in arguments)
    closed = shell(f"{PYTHON} {command} --out {tmp_path}/b >&-")
    assert closed.returncode == 0
    assert "Traceback" not in closed.stderr
    assert (tmp_path / "b" / "evaluation.json").exists()


@pytest.mark.crash
def test_stopped_and_continued(arguments, whole, tmp_path):
    """SIGSTOP and SIGCONT, a laptop that sleeps: nothing happens."""
    run = tmp_path / "run"
    with started(*arguments, "--out", run) as (process, pipe):
        for _ in range(20):
            os.kill(process.pid, signal.SIGSTOP)
            sleep(0.01)
            os.kill(process.pid, signal.SIGCONT)
            sleep(0.01)
        assert ended(process, pipe)[0].code == 0
    assert weights(run) == whole


@pytest.mark.crash
def test_told_to_stop_while_it_starts(arguments, whole, tmp_path):
    """SIGTERM in the first seconds of a whole process, mostly imports: gone in five seconds, no traceback."""
    random = Random(7)
    for index in range(16):
        run = tmp_path / str(index)
        command = [sys.executable, "-m", "minirlhf", *(str(a) for a in arguments), "--out", str(run)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        sleep(random.uniform(0.1, 3.0))
        process.terminate()
        _, err = process.communicate(timeout=5)
        assert process.returncode in (0, 143, -signal.SIGTERM), err  # the last: before any of our code
        assert "Traceback" not in err
        finished_again(run, arguments)
        assert weights(run) == whole
