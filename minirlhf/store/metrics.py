"""Metrics and samples as JSON lines: one object a line, flushed, so that a killed run loses at most one line."""

import contextlib
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def json_line(row: dict[str, Any]) -> str:
    """One JSON object without newline; a NaN or infinity becomes null, which every JSON reader understands."""
    return json.dumps({key: _plain(value) for key, value in row.items()}, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def cut(path: Path, size: int) -> list[str]:
    """Cut a file of JSON lines to the bytes that it had, for a run that goes on from there; what to say of one that has
    fewer (somebody changed it): its whole lines are kept."""
    if not path.exists():
        return [f"{path} is gone: it begins anew"] if size else []
    if path.stat().st_size >= size:
        os.truncate(path, size)
        return []
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    return [f"{path} is shorter than it was: lines are missing from it"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `JsonLines` wrote, none if there is no file; a torn line is left out, null is NaN."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


class JsonLines:
    """Append rows to a file; `with JsonLines(path) as rows: rows.write({...})`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json_line(row) + "\n")
        self._file.flush()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
