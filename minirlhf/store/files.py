"""Files and directories that are complete or absent: temporary name, fsync, rename.

A manifest holds the SHA-256 and the size of every file of a directory: safetensors finds a truncated file by itself,
but not a flipped bit. Not here: locks (lock.py), and files that grow line by line (jsonl.py).
"""

import errno
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
from minirlhf.text.files import parse_json, read_bytes

MANIFEST = "MANIFEST.json"
LARGEST_MANIFEST = 1 << 24  # bytes
LEFT = ".tmp-"  # first part of a directory's name while it is being filled
# Errors of a rename that the file system does not know: overlayfs for a directory of its lower layer, object stores.
NO_RENAME = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP}
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # errors of an fsync that the file system does not know


def write_text(path: Path, text: str) -> None:
    """Write a text file in one rename: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
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
    """Flush a file or the entries of a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        # Some file systems cannot flush a directory. A power cut may then undo the rename, and the manifest of what is
        # found instead tells whether it is whole.
        if fault.errno not in NO_SYNC or not path.is_dir():
            raise
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
        move_directory(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_directory(source: Path, target: Path) -> None:
    """Rename a directory. Where the file system cannot, copy it, the manifest last: until then a reader refuses it."""
    try:
        source.rename(target)
        return
    except OSError as fault:
        if fault.errno not in NO_RENAME:
            raise
    try:
        target.mkdir()
        for part in sorted(source.rglob("*"), key=lambda part: part.name == MANIFEST):  # a folder before what is in it
            copied = target / part.relative_to(source)
            if part.is_dir():
                copied.mkdir()
            else:
                shutil.copyfile(part, copied)  # without permission bits, which the file system may not have
            _sync(copied)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    shutil.rmtree(source)


def discard(path: Path) -> None:
    """Remove a directory, if it exists. It is renamed first, so that no reader finds half of it under its name."""
    if path.is_symlink() or path.is_file():  # a link is removed, and not its target
        path.unlink()
    elif path.exists():
        away = path.with_name(f"{LEFT}{path.name}-{os.getpid()}-old")
        shutil.rmtree(away, ignore_errors=True)  # left by a killed process with the same pid
        try:
            path.rename(away)
        except OSError as fault:
            if fault.errno not in NO_RENAME:
                raise
            (path / MANIFEST).unlink(missing_ok=True)  # without it a reader refuses what is left of the directory
            away = path
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
    """Read the object of a JSON file, strictly (no NaN, no field given twice); raises `refusal` if it holds none."""
    try:
        value = parse_json(read_bytes(path).decode("utf-8-sig"), str(path))
    except (InputError, ValueError) as fault:
        line = getattr(fault.__cause__, "lineno", None)  # of a JSONDecodeError
        where, reason = f"{path}:{line}" if line else str(path), str(fault).partition(f": {path}")[0]
        raise refusal(f"not readable as JSON ({reason})", where, "give a saved model or run") from None
    if not isinstance(value, dict):
        raise refusal("not a JSON object", str(path), "give a saved model or run")
    return value


def checked_number(value: Any) -> float:
    """A number from `read_json`, which lets only finite ones through; ValueError for anything else."""
    if type(value) not in (int, float):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)
