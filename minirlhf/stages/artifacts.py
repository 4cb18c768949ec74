"""Artifacts of stages (bases, SFT models, reward models), cached under `run.bases`: found by key, or made under a lock.

Two runs that start together make an artifact once: the second waits and finds it. Not here: the names of artifacts
(store/layout.py), and their making (base.py, preferences.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirlhf.errors import CheckpointError
from minirlhf.events import Emit
from minirlhf.store import progress
from minirlhf.store.files import read_json, remove_left, verify
from minirlhf.store.layout import artifact_name
from minirlhf.store.lock import locked

FACTS = {"base": "base.json", "sft": "base.json", "reward_model": "reward_model.json"}  # stage -> file with its facts


def find_or_make(
    root: Path, prefix: str, key: dict[str, Any], make: Callable[[Path], None], emit: Emit, stage: str
) -> Path:
    """Directory of the artifact of this key under root; `make` is called if it is not there or is damaged."""
    directory = root / artifact_name(prefix, key)
    with locked(directory.with_name(f".{directory.name}.lock"), wait=True):
        if directory.exists():
            try:
                verify(directory)
                facts = read_json(directory / FACTS[stage])
                emit({"event": "stage", "stage": stage, "reused": True, "directory": str(directory), **facts})
                return directory
            except CheckpointError as fault:
                emit({"event": "warning", "message": f"{stage.replace('_', ' ')} is made again: {fault}"})
        remove_left(root, directory.name)
        make(directory)
        progress.discard_progress(progress.progress_directory(directory))
    return directory
