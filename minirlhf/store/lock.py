"""Lock of a directory: flock, which the kernel releases when the process dies, however it dies.

Not here: pid files, which a killed process would leave behind; the pid in the lock file is for the message alone.
"""

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minirlhf.errors import UsageError
from minirlhf.events import Emit

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of flock, on some network file systems
_warned = set[str]()  # reasons why there are no locks, of which this process has warned: a run takes several locks


@contextmanager
def locked(path: Path, emit: Emit, *, wait: bool = False, of: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path`. If another process holds it: warn and wait, or raise UsageError, both with its pid.

    of: what the lock protects, for the message; None: the directory that the lock file lies in. Where files cannot be
    locked the block is entered without a lock, after a warning, once a process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(handle)
    try:
        try:
            _lock(handle, path, emit, wait, of or path.parent)
        except OSError as fault:
            if fault.errno not in UNSUPPORTED:
                raise
            _warn_once(str(fault.strerror), path, emit)
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def _lock(handle: int, path: Path, emit: Emit, wait: bool, of: Path) -> None:
    """Take the lock of an open file; OSError of UNSUPPORTED where that is not possible."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        owner = os.pread(handle, 100, 0).decode(errors="replace").strip() or "unknown"
    if not wait:
        raise UsageError(f"another process works here ({owner})", str(of), "wait for it, or choose another place")
    message = f"waiting for another process ({owner}), which holds {path}: stop it if it hangs"
    emit({"event": "warning", "message": message, "owner": owner})
    fcntl.flock(handle, fcntl.LOCK_EX)


def _warn_once(reason: str, path: Path, emit: Emit) -> None:
    if reason not in _warned:
        _warned.add(reason)
        message = (
            f"files cannot be locked here ({reason}: {path}): two processes that write into one directory are not "
            "noticed, so start one at a time"
        )
        emit({"event": "warning", "message": message})


_held = set[int]()  # open lock files


def _close_in_child() -> None:
    """Close the lock files in a forked child: a worker that outlives a killed run must not hold the run's lock."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
