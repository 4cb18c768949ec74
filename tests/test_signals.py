"""Signals of a run whose plugin has workers: forked ones act for themselves, and lost ones are not waited for.

Systems without SIGHUP or flock (Windows), as far as that can be simulated.
"""

import multiprocessing.process
import os
import signal
import subprocess
import sys
from contextlib import suppress
from time import sleep
from types import SimpleNamespace

import pytest
import torch

from minirlhf import signals
from minirlhf.components.guard import isolated, naming
from minirlhf.signals import Stop, Terminated, act, deferred, handled, time_limit


def in_child(check):
    """True if `check` returned True in a forked child."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = check() is True
        finally:
            os._exit(0 if passed else 1)
    return os.waitpid(child, 0)[1] == 0


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]


OWN = [signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL]


def test_a_forked_child_has_the_signals_of_a_program_of_its_own():
    before = handlers()
    with handled(act), time_limit(60.0, "long"):
        assert handlers() != before
        assert in_child(lambda: handlers() == before == OWN)
    assert handlers() == before
    with handled(act, (signal.SIGTERM,)):  # the record of the earlier handlers was given up: another one is made
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert in_child(lambda: signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_child_that_is_ended_at_once_ends():
    """A signal between the fork and the hook would be handled as in the parent, and swallowed."""
    with handled(act):
        for _ in range(10):
            child = os.fork()
            if child == 0:
                sleep(20)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_signal_during_a_fork_is_not_lost(monkeypatch):
    """The hook that lets it in cannot raise."""
    with pytest.raises(Terminated), handled(act):
        signals._block()
        try:
            os.kill(os.getpid(), signal.SIGTERM)  # a thread of another library, which blocks nothing, may be told first
        finally:
            with suppress(Terminated):
                signals._unblock()
        sleep(5)


def test_a_child_ignores_the_first_ctrl_c_if_its_parent_only_records_it():
    def ignored():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(500):  # a thread of another library may be the one that gets it first
            if handlers() != OWN:
                sleep(0.01)
        return handlers() == OWN

    def interrupts():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            sleep(5)
        except KeyboardInterrupt:
            return True

    with pytest.raises(KeyboardInterrupt), handled(act), deferred():
        assert in_child(ignored)
        os.kill(os.getpid(), signal.SIGINT)
        assert in_child(interrupts)  # a worker that is started after it: the next one is the second
    with handled(act):
        assert in_child(interrupts)


def test_a_child_computes_with_one_thread():
    """The others are not forked, and waiting for them would never end."""
    torch.set_num_threads(2)
    try:
        with handled(act):
            assert in_child(lambda: torch.get_num_threads() == 1)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("code", "returns", "acts"), [(-15, False, True), (None, False, False), (-15, True, False)])
def test_lost_workers_of_a_plugin_are_not_waited_for(code, returns, acts, monkeypatch):
    monkeypatch.setattr(signals, "TO_DIE", 0.01)
    monkeypatch.setattr(signals, "TO_RETURN", 0.02)
    monkeypatch.setattr(multiprocessing.process, "_children", [SimpleNamespace(exitcode=code)])
    waited = False
    with pytest.raises(Terminated), deferred():
        with isolated():
            os.kill(os.getpid(), signal.SIGTERM)
            if not returns:
                sleep(5 if acts else 0.2)
        sleep(0.05)
        waited = True
    assert waited != acts


def test_what_fails_after_a_signal_is_not_the_plugins_fault(monkeypatch):
    stop = Stop()
    stop.asked = signal.SIGTERM
    monkeypatch.setattr(signals, "_waiting", [stop])
    with pytest.raises(Terminated), naming("reward 'r'", "r.py:1", "r.py"):
        raise BrokenPipeError


ODD = """
import signal, sys
del signal.SIGHUP
sys.modules["fcntl"] = None  # its import fails
from minirlhf.cli.main import main
from minirlhf.signals import SIGNALS
from minirlhf.store import lock
assert lock.fcntl is None and SIGNALS == (signal.SIGINT, signal.SIGTERM)
main(["--help"])
"""


def test_without_sighup_and_fcntl_the_program_runs():
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


@pytest.mark.parametrize(("ends", "code"), [(None, 0), (SystemExit(7), 7), (SystemExit("no"), 1), (ValueError("x"), 1)])
def test_a_child_that_comes_back_out_of_a_plugin_ends(ends, code, capfd):
    """It would go on as a second run of the same directory."""

    def fork():
        if os.fork() == 0 and ends is not None:
            raise ends

    process = os.getpid()
    with isolated(), naming("a reward", "f.py:1", "f.py"):
        fork()
    assert os.getpid() == process
    assert os.waitstatus_to_exitcode(os.wait()[1]) == code
    assert ("ValueError: x" in capfd.readouterr().err) is isinstance(ends, ValueError)
