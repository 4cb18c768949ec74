"""Runs in processes of their own, several at once: `Children` stands in for `run`, threads wait for them.

A child is `minirlhf run CONFIG.toml --out DIR --json`, so it is the same run to the bit. Beside DIR stand its
configuration and what it wrote to stderr, until it ends in a way that is understood. It is in a process group of its
own: Ctrl-C reaches it once, through `tell`. Its events come through a pipe; where their reader was killed, the child
ends at its next event.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import CheckpointError, DiskError, DivergedError, PluginError, UsageError, UserError
from minirlhf.events import Emit
from minirlhf.signals import Terminated
from minirlhf.store.files import write_text

KINDS: dict[int, type[UserError]] = {
    kind.exit_code: kind for kind in (UsageError, DivergedError, CheckpointError, PluginError, DiskError)
}


class RunLost(UserError):
    """A run ended as no mistake of a user ends it: a bug, no memory left, or somebody killed it (exit 1)."""

    exit_code = 1


class Children:
    """`run` in a process of its own, from any thread; of its events only the warnings come through."""

    def __init__(self) -> None:
        self._alive, self._told = set[subprocess.Popen[str]](), False
        self._changed = threading.Condition()

    def __call__(self, config: Config, registry: Registry, directory: Path, emit: Emit) -> Path:
        """Run a configuration that has been resolved; the plugins of `registry` are loaded again by their names."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        settings, log = (directory.with_name(directory.name + ending) for ending in (".toml", ".log"))
        write_text(settings, dump_toml(config))
        with log.open("w", encoding="utf-8") as errors:
            process = self._start(command(settings, directory), errors)
            try:
                with process:
                    for line in process.stdout or ():
                        with suppress(ValueError):  # what a plugin prints is no event
                            event = json.loads(line)
                            if isinstance(event, dict) and event.get("event") == "warning":
                                emit(event)
            finally:
                with self._changed:
                    self._alive.remove(process)
                    self._changed.notify_all()
        settings.unlink(missing_ok=True)
        code = process.returncode
        fault = failure(code, log) if code else None
        if self._told or not isinstance(fault, RunLost):
            log.unlink(missing_ok=True)
        if fault is not None:
            raise fault
        return directory

    def _start(self, arguments: list[str], errors: IO[str]) -> "subprocess.Popen[str]":
        # What can be imported here can be imported there, and nothing else: -P leaves the current directory out.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        with self._changed:
            if self._told:
                raise Terminated
            process = subprocess.Popen(
                arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                process_group=0, encoding="utf-8", errors="replace",
            )  # fmt: skip
            self._alive.add(process)
        return process

    def tell(self, number: int) -> None:
        """Send a signal to every run that is going on; no other one begins."""
        with self._changed:
            self._told = True
            for process in self._alive:
                process.send_signal(number)

    def wait(self) -> None:
        """Until no run is going on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alive)


def command(settings: Path, directory: Path) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-P", "-m", "minirlhf", "run", str(settings), "--out", str(directory), "--json"]


def failure(code: int, log: Path) -> UserError:
    """The error that ended a run with this code: the last line that it wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "").removeprefix("error: ")
    if code in KINDS:
        return KINDS[code](said or f"a run ended with exit code {code}")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RunLost(f"a run {how}{f' ({said})' if said else ''}", f"what it wrote is in {log}")


@contextmanager
def at_once(jobs: int, children: Children, emit: Emit) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads to call `children` in. Whatever ends it early, none of them is left behind: they are
    told to stop, as by Ctrl-C, and waited for; a second signal kills them."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException as fault:
        pool.shutdown(wait=False, cancel_futures=True)
        children.tell(signal.SIGTERM)
        try:
            if isinstance(fault, (KeyboardInterrupt, Terminated)):
                said = "stopping the runs, each after its step; once more: at once"
                emit({"event": "warning", "message": said})
            children.wait()  # a join of threads that a signal breaks off would take them for ended
        except (KeyboardInterrupt, Terminated):
            children.tell(signal.SIGKILL)
            raise
        raise
    finally:
        pool.shutdown()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
