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

from minirlhf.errors import InputError
from minirlhf.text.files import parse_json, read_bytes

BOM = b"\xef\xbb\xbf"


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
    kept = b"".join(line + b"\n" for line in content.split(b"\n") if _step_of(line) <= step)
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


def edited_rows(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield (bytes before its line, FILE:LINE, value) of each row of a file that a person may have edited.

    Byte order marks (of files put together), CRLF and blank lines are fine. Anything else that is not JSON in UTF-8 is
    an InputError with FILE:LINE: unlike `each_row`, nothing is left out.
    """
    start = 0
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        where, content = f"{path}:{number}", line.replace(BOM, b"")
        if content.strip():
            try:
                text = content.decode()
            except UnicodeDecodeError as fault:
                what = f"invalid UTF-8 (byte 0x{content[fault.start]:02x})"
                raise InputError(what, where, "save the file as UTF-8") from None
            yield start, where, parse_json(text, where)
        start += len(line) + 1


def append_line(path: Path, line: str) -> tuple[int, int]:
    """Append a line and flush it to the disk; return the file's size in bytes before and after it.

    A last line without its newline gets one first. If the disk fails, the file is as it was.
    """
    with path.open("a+b") as file:
        start = file.seek(0, os.SEEK_END)
        file.seek(max(0, start - 1))
        torn = file.read(1) not in (b"", b"\n")
        try:
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)
            raise
        return start, file.tell()


class JsonLines:
    """File of JSON lines to append to; `with JsonLines(path) as rows: rows.write({...})`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        # A lone surrogate, which a plugin may log, is no UTF-8; its escape is JSON.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")

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
