"""Rewards with workers: pools of every kind score, and a signal to the whole process group ends the run in time.

All of it by `pytest -m crash`; the parts are tested in tests/test_signals.py.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from minirlhf.store.checkpoint import all_of

pytestmark = pytest.mark.crash

POOLS = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

def one(text):
    import torch  # on two threads, if these were waited for
    print("a worker prints")
    return float(torch.ones(300, 300).mm(torch.ones(300, 300))[0, 0]) * len(text)

def slow(text):
    time.sleep(0.7)
    return float(len(text))

def call(make, function, texts):
    with make() as pool:
        return [*pool.map(function, texts[:4]), *map(len, texts[4:])]

def endless():
    time.sleep(1000)

def ended(completions):
    process = multiprocessing.get_context("fork").Process(target=endless)
    process.start()
    process.join(0.05)
    process.terminate()
    process.join(10)
    assert process.exitcode == -15
    return [float(len(text)) for text in completions]
"""
KINDS = {name: f"lambda: multiprocessing.get_context({name!r}).Pool(2)" for name in ("fork", "forkserver", "spawn")}
KINDS |= {"processes": "lambda: ProcessPoolExecutor(2)", "threads": "lambda: ThreadPoolExecutor(2)"}
for kind, make in KINDS.items():
    POOLS += f"\ndef {kind}(completions):\n    return call({make}, one, completions)\n"
    POOLS += f"\ndef slow_{kind}(completions):\n    return call({make}, slow, completions)\n"


def command(tiny, folder, reward, *more):
    (folder / "pools.py").write_text(POOLS)
    rewarded = ("--set", "ppo.iterations=9", "--reward", f"{folder / 'pools.py'}:{reward}")
    return [sys.executable, "-m", "minirlhf", "run", *tiny, *rewarded, "--out", str(folder / "run"), *more]


@pytest.mark.parametrize("reward", [*KINDS, "ended"])
def test_workers_score_and_stdout_has_events_alone(reward, tiny, tmp_path):
    arguments = command(tiny, tmp_path, reward, "--set", "ppo.iterations=1", "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-1] == "run_finished"
    assert ("a worker prints" in done.stderr) == (reward != "ended")


@pytest.mark.parametrize(
    ("reward", "number", "saved"),
    [
        ("slow_fork", signal.SIGINT, True),
        ("slow_processes", signal.SIGINT, True),
        ("slow_threads", signal.SIGTERM, True),
        ("slow_fork", signal.SIGHUP, True),
        ("slow_fork", signal.SIGTERM, False),
        ("slow_forkserver", signal.SIGINT, False),
        ("slow_processes", signal.SIGTERM, False),
    ],
)
def test_a_signal_to_the_whole_group_while_a_pool_works(reward, number, saved, tiny, tmp_path):
    """saved: the iteration ends as usual, because the workers ignore the first signal, or do not get it."""
    with subprocess.Popen(
        command(tiny, tmp_path, reward, "--ui", "plain"), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            for line in process.stderr:
                if line.startswith("ppo "):
                    break
            sleep(0.5)  # in the first iteration, which takes more than one second
            sent = monotonic()
            os.killpg(process.pid, number)
            code = process.wait(20)
            assert monotonic() - sent < 8  # five on a machine of one's own
        finally:
            process.kill()
    assert code == (130 if number == signal.SIGINT else 143)
    assert bool(all_of(tmp_path / "run" / "checkpoints")) == saved


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_lock(tiny, tmp_path):
    with subprocess.Popen(
        command(tiny, tmp_path, "slow_fork", "--ui", "plain"), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stderr:
            if line.startswith("ppo "):
                break
        sleep(0.5)
        process.kill()
    resumed = [sys.executable, "-m", "minirlhf", "run", "--resume", str(tmp_path / "run"), "--ui", "quiet"]
    Path(tmp_path / "pools.py").write_text(POOLS.replace("time.sleep(0.7)", "pass"))
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
