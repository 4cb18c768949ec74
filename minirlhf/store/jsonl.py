"""JSON lines (metrics, samples, token log): one object a line, flushed, so that a killed run loses at most one line.

Not here: what the rows hold (events.py, rl/metrics.py), and JSON files that are written at once (files.py).
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def json_line(row: dict[str, Any], *, ascii_only: bool = True) -> str:
    """One JSON object without newline; a NaN or infinity becomes null, which every JSON reader understands.

    ascii_only: with other letters as escapes, so that a stream of any encoding carries it.
    """
    try:
        return json.dumps(row, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:  # it holds a NaN or infinity; looking for one in every row would cost more than writing it
        return json.dumps(_plain(row), ensure_ascii=ascii_only, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def cut(path: Path, size: int, step: int) -> list[str]:
    """Cut a file of JSON lines to its `size` in bytes after `step`, for a run that continues from there.

    If somebody changed the file, no line ends at that size: then its complete lines up to that step are kept. Returns
    sentences for the user, none or one.
    """
    if not path.exists():
        return [f"{path} is gone: it begins anew"] if size else []
    content = path.read_bytes()
    if len(content) >= size and (not size or content[size - 1 : size] == b"\n"):
        os.truncate(path, size)
        return []
    kept = b"".join(line + b"\n" for line in content.splitlines() if _step_of(line) <= step)
    path.write_bytes(kept)
    return [f"{path} was changed: its whole lines up to step {step} are kept, others may be missing"]


def _step_of(line: bytes) -> float:
    """Step of a row; infinite for a line that is no row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return math.inf


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `JsonLines` wrote; none if there is no file. A torn line is left out; null becomes NaN."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of `read_rows` one after another, for long files.

    Lines end with a newline and with nothing else: a text may hold U+2028, at which str.splitlines would cut.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield {key: math.nan if value is None else value for key, value in row.items()}


class JsonLines:
    """File of JSON lines to append to; `with JsonLines(path) as rows: rows.write({...})`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        # A lone surrogate, which a plugin may log, is no UTF-8; its escape is JSON.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json_line(row, ascii_only=False) + "\n")
        self._file.flush()

    def sync(self) -> int:
        """Flush the file to the disk; return its size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
