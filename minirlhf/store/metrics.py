"""Metrics and samples as JSON lines: one object a line, flushed, so that a killed run loses at most one line."""

import json
import math
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


class JsonLines:
    """Append rows to a file; `with JsonLines(path) as rows: rows.write({...})`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json_line(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
