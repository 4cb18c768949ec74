"""Lock of a directory: flock, which the kernel releases when the process dies, however it dies.

Not here: pid files, which a killed process would leave behind; the pid in the lock file is for the message alone.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minirlhf.errors import UsageError


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`. If another process holds it: wait, or raise UsageError with its pid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            owner = os.pread(handle, 100, 0).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"another process works here ({owner})", str(path.parent), "wait for it, or choose another directory"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


_held = set[int]()  # open lock files


def _close_in_child() -> None:
    """Close the lock files in a forked child: a worker that outlives a killed run must not hold the run's lock."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
