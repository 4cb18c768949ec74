"""Jobs: runs in child processes, several at once. `Children` replaces `run`; a thread waits for each child.

A child is `minirlhf run CONFIG.toml --out DIR --json`, so its run is the same to the bit. DIR.toml (its configuration)
and DIR.log (its stderr) exist until the child ends; the log is kept if it ended for no known reason. Each child has a
process group of its own, so that Ctrl-C reaches it once, through `tell`. Events come through a pipe; if this process is
killed, a child ends at its next event.

Not here: which runs there are and what is measured (compare.py, cell_runs.py).
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

FAULTS: dict[int, type[UserError]] = {
    fault.exit_code: fault for fault in (UsageError, DivergedError, CheckpointError, PluginError, DiskError)
}


class RunLost(UserError):
    """A child ended by a bug, lack of memory or a signal: by nothing that a user did wrong (exit 1)."""

    exit_code = 1


class Children:
    """Runs in child processes, started from any thread; forwards only their warnings.

    That a child waits for a process goes to `warn` at once, unless both are children: they make what they share once.
    """

    def __init__(self, warn: Emit = lambda _: None) -> None:
        self._warn, self._alive, self._told = warn, set[subprocess.Popen[str]](), False
        self._changed = threading.Condition()

    def __call__(self, config: Config, registry: Registry, directory: Path, emit: Emit) -> Path:
        """Run a resolved configuration; the child loads the plugins by name. Raises the child's UserError."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        settings, log = (directory.with_name(directory.name + ending) for ending in (".toml", ".log"))
        write_text(settings, dump_toml(config))
        with log.open("w", encoding="utf-8") as errors:
            process = self._start(child_command(settings, directory), errors)
            try:
                with process:
                    for line in process.stdout or ():
                        with suppress(ValueError):  # a line that a plugin printed
                            event = json.loads(line)
                            if isinstance(event, dict) and event.get("event") == "warning":
                                if "owner" not in event:
                                    emit(event)
                                elif not self._is_child(str(event["owner"])):
                                    self._warn(event)
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
        # The child imports from the same paths as this process; -P keeps the current directory out of them.
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

    def _is_child(self, owner: str) -> bool:
        """True if the owner of a lock, `pid N on HOST`, is a running child."""
        with self._changed:
            return any(owner.startswith(f"pid {process.pid} on ") for process in self._alive)

    def tell(self, number: int) -> None:
        """Send a signal to every running child and start no further ones."""
        with self._changed:
            self._told = True
            for process in self._alive:
                process.send_signal(number)

    def wait(self) -> None:
        """Block until no child is running."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alive)


def child_command(settings: Path, directory: Path) -> list[str]:
    """Command line of a child."""
    return [sys.executable, "-P", "-m", "minirlhf", "run", str(settings), "--out", str(directory), "--json"]


def failure(code: int, log: Path) -> UserError:
    """Error of a child that ended with this exit code, with the last line of its log as message."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "").removeprefix("error: ")
    if code in FAULTS:
        return FAULTS[code](said or f"a run ended with exit code {code}")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RunLost(f"a run {how}{f' ({said})' if said else ''}", f"what it wrote is in {log}")


@contextmanager
def at_once(jobs: int, children: Children, emit: Emit) -> Iterator[ThreadPoolExecutor]:
    """Pool of `jobs` threads in which to call `children`; leaves no child behind.

    If the block ends early, children are told to stop (SIGTERM) and waited for; a second signal kills them.
    """
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
            children.wait()  # before shutdown: a thread join that a signal interrupts would count as done
        except (KeyboardInterrupt, Terminated):
            children.tell(signal.SIGKILL)
            raise
        raise
    finally:
        pool.shutdown()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
