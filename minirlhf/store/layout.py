"""Names: directories of cached artifacts and of new runs, and the signs by which a run directory is known."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.errors import UsageError
from minirlhf.store.files import MANIFEST


def artifact_name(prefix: str, key: dict[str, Any]) -> str:
    """Directory name of a cached artifact: prefix + first 16 hex digits of its key's SHA-256."""
    return prefix + hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def claim_directory(wanted: Path, sign: Callable[[Path], Path] = Path) -> Path:
    """First of wanted, wanted-2, wanted-3, ... that is free; `sign` of it is the directory that is made to claim it.

    Names hold the time to the second, so two processes that start together want the same one.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    name, number = wanted, 1
    while True:
        with suppress(FileExistsError):
            if not os.path.lexists(name):
                sign(name).mkdir()
                return name
        number += 1
        name = wanted.with_name(f"{wanted.name}-{number}")


def check_run(directory: Path) -> None:
    """Refuse a directory that is not that of a run (UsageError)."""
    if not (directory / "config.toml").is_file():
        raise UsageError("there is no run in it", str(directory), "give a directory that `minirlhf run` has made")
    if (directory / MANIFEST).exists():
        raise UsageError("this is no run but a saved model", str(directory), "give the directory of a run")
