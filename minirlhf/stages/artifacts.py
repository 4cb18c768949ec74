"""Cached artifacts of stages (bases, SFT models, reward models): found by key, or made under a lock."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirlhf.errors import CheckpointError
from minirlhf.events import Emit
from minirlhf.store import progress
from minirlhf.store.files import read_json, remove_left, verify
from minirlhf.store.layout import kept_name
from minirlhf.store.lock import locked

FACTS = {"base": "base.json", "sft": "base.json", "reward_model": "reward_model.json"}  # stage -> what is known of it


def kept(root: Path, prefix: str, key: dict[str, Any], make: Callable[[Path], None], emit: Emit, stage: str) -> Path:
    """root/PREFIXHASH of this key, as it was found or made: made under a lock, and again if it is damaged."""
    directory = root / kept_name(prefix, key)
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
