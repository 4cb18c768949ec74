"""A reward that fails while a run goes on: the run ends and keeps its checkpoint, or the iteration is skipped."""

import json
from time import monotonic

import pytest

from minirlhf.store.checkpoint import all_of
from minirlhf.store.files import verify
from tests.cli.calling import call, done
from tests.crash.child import FORKS, stuck

FAILING = """
import asyncio, os, time

def failing(completions, trainer_state):
    if str(trainer_state.global_step + 1) in os.environ.get("FAIL_AT", "").split(","):
        fail()
    return [float(len(text)) for text in completions]

async def patient(completions, trainer_state):
    if trainer_state.global_step == 1:
        await asyncio.sleep(1000)
    return [float(len(text)) for text in completions]

def fail():
    %s
"""


@pytest.fixture
def arguments(tiny, tmp_path):
    sets = ("ppo.iterations=6", "run.checkpoint_every=1")
    return [*tiny, *(part for s in sets for part in ("--set", s)), "--out", tmp_path / "run"]


def reward(tmp_path, how, function="failing"):
    (tmp_path / "rewards.py").write_text(FAILING % how)
    return ("--reward", f"{tmp_path}/rewards.py:{function}")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_by_default_it_ends_the_run_and_what_was_saved_goes_on_once_it_is_mended(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "4")
    result = call("run", *arguments, *reward(tmp_path, "raise ValueError('no answer')"))
    assert (result.code, len(result.errors)) == (5, 1)
    for part in ("step 4", "ValueError", "no answer", "rewards.py"):
        assert part in result.errors[0]
    assert [p.name for p in all_of(tmp_path / "run" / "checkpoints")] == ["step_00000002", "step_00000003"]
    monkeypatch.delenv("FAIL_AT")
    assert "after step 3" in done("run", "--resume", tmp_path / "run").err


@pytest.mark.parametrize("how", ["raise RuntimeError('down')", "raise SystemExit(3)", "return fail()"])
def test_an_iteration_may_be_left_out(how, arguments, tmp_path, monkeypatch):
    """Nothing is learned in a skipped iteration: weights and optimiser stay those of the checkpoint before it."""
    monkeypatch.setenv("FAIL_AT", "3,4")
    steered = ("--set", "kl.controller=adaptive", "--set", "kl.target=0.5", "--set", "kl.horizon=20")
    skip = ("--set", "run.on_reward_error=skip", "--set", "run.keep_checkpoints=9", *steered)
    result = done("run", *arguments, *skip, *reward(tmp_path, how))
    assert "warning: iteration 3 teaches nothing: reward" in result.err
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["count/reward_errors"] for row in metrics] == [0, 0, 1, 1, 0, 0]
    assert [row["count/updates"] for row in metrics] == [1, 1, 0, 0, 1, 1]
    assert metrics[1]["kl/coef"] != metrics[2]["kl/coef"] == metrics[3]["kl/coef"] == metrics[4]["kl/coef"]
    assert metrics[2]["objective/kl"] is metrics[2]["policy/entropy_avg"] is metrics[2]["objective/scores"] is None
    assert "the entropy fell" not in result.err
    two, three, four, five = (
        (tmp_path / "run" / "checkpoints" / f"step_0000000{n}" / "policy.safetensors").read_bytes()
        for n in (2, 3, 4, 5)
    )
    assert two == three == four != five


def test_more_than_three_in_a_row_end_the_run(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "2,3,4,5")
    skip = ("--set", "run.on_reward_error=skip")
    result = call("run", *arguments, *skip, *reward(tmp_path, "raise ValueError('no answer')"))
    assert (result.code, len(result.errors)) == (5, 1)
    assert "step 5" in result.errors[0]
    assert result.err.count("teaches nothing") == 3


@pytest.mark.parametrize("function", ["failing", "patient"])
def test_one_that_never_returns_is_ended_and_named(function, arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "2")
    limit = ("--set", "run.reward_timeout_s=0.2")
    began = monotonic()
    result = call("run", *arguments, *limit, *reward(tmp_path, "time.sleep(1000)", function))
    assert monotonic() - began < 30
    assert (result.code, len(result.errors)) == (5, 1), result.err
    assert "longer than run.reward_timeout_s = 0.2 s" in result.errors[0]
    assert function in result.errors[0]
    assert "Traceback" not in result.err
    (path,) = all_of(tmp_path / "run" / "checkpoints")
    verify(path)


@pytest.mark.crash
def test_one_that_is_stuck_in_c_ends_the_process_and_leaves_the_checkpoint(arguments, tmp_path):
    limit = ("--set", "run.reward_timeout_s=0.2")
    command = ["run", *arguments, *limit, *reward(tmp_path, "sum(range(10**13))")]
    process = FORKS.Process(target=stuck, args=([str(a) for a in command], {"FAIL_AT": "2"}))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    (path,) = all_of(tmp_path / "run" / "checkpoints")
    verify(path)
    done("run", "--resume", tmp_path / "run")


def test_one_that_swallows_every_exception_is_told_again(arguments, tmp_path, monkeypatch):
    """The reward retries after any error, as a client of a server may; the time limit must reach it all the same."""
    monkeypatch.setenv("FAIL_AT", "2")
    again = "try: time.sleep(1000)\n    except Exception: fail()"
    result = call("run", *arguments, "--set", "run.reward_timeout_s=0.2", *reward(tmp_path, again))
    assert (result.code, len(result.errors)) == (5, 1)
    assert "longer than run.reward_timeout_s" in result.errors[0]


GREEDY = """
def advantage(rewards, mask, greedy_scores):
    return (rewards.sum(dim=1) - greedy_scores).unsqueeze(1) * mask
"""


def test_a_baseline_that_fails_leaves_the_iteration_out_as_well(arguments, tmp_path):
    """The second call of an iteration scores the most likely responses: without them there is no baseline."""
    (tmp_path / "advantage.py").write_text(GREEDY)
    more = ("--advantage", f"{tmp_path}/advantage.py:advantage", "--set", "run.on_reward_error=skip")
    fails = "calls.append(1)\n    if len(calls) == 4: raise ValueError"
    source = (
        "calls = []\ndef failing(completions):\n    " + fails + "\n    return [float(len(t)) for t in completions]\n"
    )
    (tmp_path / "rewards.py").write_text(source)
    done("run", *arguments, *more, "--reward", f"{tmp_path}/rewards.py:failing")
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["count/reward_errors"] for row in metrics] == [0, 1, 0, 0, 0, 0]
    assert [row["count/updates"] for row in metrics] == [1, 0, 1, 1, 1, 1]


def test_failures_in_a_row_are_counted_across_a_stop(arguments, tmp_path, monkeypatch):
    """Failing in iterations 2 to 5, stopped after 3 or not at all: the fifth one ends the run."""
    monkeypatch.setenv("FAIL_AT", "2,3,4,5")
    skip = ("--set", "run.on_reward_error=skip")
    failing = reward(tmp_path, "raise ValueError('no answer')")
    first = call("run", *arguments, *skip, *failing, "--set", "ppo.iterations=3")
    assert "evaluation, after all iterations" in first.errors[0]  # it fails there, too: the loop has ended
    result = call("run", "--resume", tmp_path / "run", "--set", "ppo.iterations=6")
    assert (result.code, len(result.errors)) == (5, 1), result.err
    assert "step 5" in result.errors[0]


def test_an_evaluation_that_fails_says_so_and_how_to_go_on(arguments, tmp_path):
    line = "return [1.0 / (6 - trainer_state.global_step)] * len(completions)"
    source = f"def failing(completions, trainer_state):\n    {line}\n"
    (tmp_path / "rewards.py").write_text(source)
    result = call("run", *arguments, "--reward", f"{tmp_path}/rewards.py:failing")
    assert (result.code, len(result.errors)) == (5, 1)
    assert "evaluation, after all iterations" in result.errors[0]
    assert f"go on with: minirlhf run --resume {tmp_path / 'run'}" in result.err
