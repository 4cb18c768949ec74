"""Names: directories of cached artifacts, and the signs by which a run directory is known."""

import hashlib
import json
from pathlib import Path
from typing import Any

from minirlhf.errors import UsageError
from minirlhf.store.files import MANIFEST


def artifact_name(prefix: str, key: dict[str, Any]) -> str:
    """Directory name of a cached artifact: prefix + first 16 hex digits of its key's SHA-256."""
    return prefix + hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def check_run(directory: Path) -> None:
    """Refuse a directory that is not that of a run (UsageError)."""
    if not (directory / "config.toml").is_file():
        raise UsageError("there is no run in it", str(directory), "give a directory that `minirlhf run` has made")
    if (directory / MANIFEST).exists():
        raise UsageError("this is no run but a saved model", str(directory), "give the directory of a run")
