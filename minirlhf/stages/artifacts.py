"""Artifacts of stages (bases, SFT models, reward models), cached under `run.bases`: found by key, or made under a lock.

Two runs that start together make an artifact once: the second waits and finds it. What is there is used without a lock,
because it appeared in one rename; so `run.bases` may be read-only. Not here: the names of artifacts
(store/layout.py), and their making (base.py, preferences.py).
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.errors import CheckpointError, DiskError
from minirlhf.events import Emit
from minirlhf.store import progress
from minirlhf.store.files import read_json, remove_left, verify
from minirlhf.store.layout import artifact_name
from minirlhf.store.lock import locked

NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
FACTS = {  # stage -> file with its facts
    "base": "base.json", "sft": "base.json", "reward_model": "reward_model.json", "model": "config.json",
}  # fmt: skip


def find_or_make(
    root: Path, prefix: str, key: dict[str, Any], make: Callable[[Path], None], emit: Emit, stage: str
) -> Path:
    """Directory of the artifact of this key under root; `make` is called if it is not there or is damaged."""
    directory = root / artifact_name(prefix, key)

    def reuse() -> bool:
        """Tell of the artifact if it is there; CheckpointError if it is damaged."""
        if not directory.exists():
            return False
        verify(directory)
        facts = read_json(directory / FACTS[stage])
        emit({"event": "stage", "stage": stage, "reused": True, "directory": str(directory), **facts})
        return True

    with suppress(CheckpointError):  # another process may be replacing it; the lock is needed to know
        if reuse():
            return directory
    try:
        with locked(directory.with_name(f".{directory.name}.lock"), emit, wait=True):
            try:
                if reuse():
                    return directory
            except CheckpointError as fault:
                emit({"event": "warning", "message": f"{stage.replace('_', ' ')} is made again: {fault}"})
            remove_left(root, directory.name)
            make(directory)
            progress.discard_progress(progress.progress_directory(directory))
    except OSError as fault:
        if fault.errno not in NOT_WRITABLE:
            raise
        todo = "free the disk, or choose another place by --set run.bases=DIR"
        raise DiskError(f"cannot write ({fault.strerror})", str(fault.filename or root), todo) from None
    return directory
