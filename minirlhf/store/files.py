"""Files and directories that are complete or absent: temporary name, fsync, rename.

A manifest holds the SHA-256 and the size of every file of a directory: safetensors finds a truncated file by itself,
but not a flipped bit. Not here: locks (lock.py), and files that grow line by line (jsonl.py).
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minirlhf.errors import CheckpointError, InputError, UserError

MANIFEST = "MANIFEST.json"
LARGEST_MANIFEST = 1 << 24  # bytes
LEFT = ".tmp-"  # first part of a directory's name while it is being filled


def write_text(path: Path, text: str) -> None:
    """Write a text file in one rename: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, keys in the order given; ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def complete_directory(path: Path) -> Iterator[Path]:
    """Fill the yielded temporary directory; on success it appears as `path`, with a manifest, in one rename.

    A directory of that name is replaced. On any error nothing is left behind.
    """
    temporary = path.with_name(f"{LEFT}{path.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        entries = {str(p.relative_to(temporary)): {"sha256": sha256(p), "size": p.stat().st_size} for p in files}
        for file in files:
            _sync(file)
        write_json(temporary / MANIFEST, {"format": 1, "files": entries})
        _sync(temporary)
        discard(path)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a directory, if it exists. It is renamed first, so that no reader finds half of it under its name."""
    if path.is_symlink() or path.is_file():  # a link is removed, and not its target
        path.unlink()
    elif path.exists():
        away = path.with_name(f"{LEFT}{path.name}-{os.getpid()}-old")
        shutil.rmtree(away, ignore_errors=True)  # left by a killed process with the same pid
        path.rename(away)
        shutil.rmtree(away)


def remove_left(root: Path, name: str = "*") -> None:
    """Remove directories root/name that killed processes left half filled. The caller holds the lock of root/name."""
    for path in root.glob(f"{LEFT}{name}-*"):
        shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> None:
    """Compare a directory with its manifest: every file, its size and SHA-256, and no other file (CheckpointError)."""
    todo = "it cannot be used; remove it"
    try:
        manifest = (path / MANIFEST).lstat()
        if not stat.S_ISREG(manifest.st_mode) or manifest.st_size > LARGEST_MANIFEST:
            raise ValueError("a link leads elsewhere, a pipe would wait for a writer")
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (str(e["sha256"]), int(e["size"])) for name, e in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError("no readable manifest", str(path / MANIFEST), todo) from None
    present = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_symlink() or not p.is_dir()} - {MANIFEST}
    if present != set(expected):
        raise CheckpointError(f"files differ from the manifest by {sorted(present ^ set(expected))}", str(path), todo)
    for name, (digest, size) in expected.items():
        file = path / name
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != size or sha256(file) != digest:
            raise CheckpointError("content differs from the manifest", str(file), todo)


def read_json(path: Path, refusal: type[UserError] = InputError) -> dict[str, Any]:
    """Read the object of a JSON file; raises `refusal` if the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise refusal(f"not readable as JSON ({fault})", str(path), "give a saved model or run") from None
    if not isinstance(value, dict):
        raise refusal("not a JSON object", str(path), "give a saved model or run")
    return value
