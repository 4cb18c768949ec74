"""Files and their rows: sources to files, bytes to text, JSON Lines, arrays and Parquet to rows, fields to strings.

A source is a file (`.txt`, `.jsonl`, `.json`, `.parquet`), a folder of them, or the bare name of a packaged corpus. The
result is rows with FILE:LINE, or one InputError that names file and line, whatever a file holds.

Not here: downloads, files that are compressed or not UTF-8, and the meaning of a row (corpus.py, comparisons.py).
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from minirlhf.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
# A wheel carries the corpora inside the package; in a checkout they lie beside it.
PACKAGED_ROOTS = (Path(__file__).parents[1] / "corpora", Path(__file__).parents[2] / "corpora")

# First bytes of what is often given by mistake for UTF-8 text; some of it holds no NUL.
_SIGNATURES = {
    b"\x1f\x8b": "gzip data",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\xfd7zXZ\x00": "xz data",
    b"BZh": "bzip2 data",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_SPACE = re.compile(r"[ \t\n]*")
_MARK = "\ufeff"  # the byte order mark; files that are put together have one in the middle
_ESCAPED_MARK = re.compile(r"\\u[fF][eE][fF][fF]")


# ---- where a source is -------------------------------------------------------------------------------------


def packaged_names() -> list[str]:
    """Names of the corpora that come with the program, sorted."""
    folders = [folder for root in PACKAGED_ROOTS if root.is_dir() for folder in root.iterdir()]
    return sorted({folder.name for folder in folders if any(folder.glob("*.jsonl"))})


def is_packaged(source: str) -> bool:
    """True for a bare name (no slash, no suffix), which means a packaged corpus; else it is a path."""
    return source != "" and "." not in source and os.path.basename(source) == source


def packaged(name: str) -> Path:
    """Folder of the packaged corpus `name`: package data first, else `corpora/` beside the package.

    Errors: InputError that lists the names that exist.
    """
    if name in packaged_names():
        return next(root / name for root in PACKAGED_ROOTS if any((root / name).glob("*.jsonl")))
    todo = f"packaged are: {', '.join(packaged_names()) or 'none'}; a path of your own needs a slash"
    if os.path.exists(name):
        todo += f" (./{name})"
    raise InputError("no packaged corpus of this name", repr(name), todo)


def corpus_files(source: str, *, which: str = "text") -> list[Path]:
    """Files of a source: itself, a folder's usable files by name, or `which`.jsonl of a packaged corpus.

    A folder is read one level deep; hidden files and other kinds (a README, a licence) are left out. Errors: InputError
    for a path that does not exist, a folder without usable files, an unusable suffix.
    """
    if not source:
        raise InputError("the name of a corpus is empty", todo="give a file, a folder or a packaged name")
    if is_packaged(source):
        path = packaged(source) / f"{which}.jsonl"
        if not path.is_file():
            raise InputError(f"packaged corpus {source!r} has no {which}", str(path))
        return [path]
    path = Path(source)
    if not stat.S_ISDIR(_stat(path).st_mode):
        if path.suffix.lower() not in SUFFIXES:
            todo = f"use {', '.join(SUFFIXES)} (unpack or convert it first)"
            raise InputError(f"a corpus file cannot be of kind {path.suffix!r}", str(path), todo)
        return [path]
    try:
        names = sorted(os.listdir(path))
    except OSError as exc:
        raise InputError(f"folder cannot be read ({exc.strerror})", str(path)) from exc
    files = [path / name for name in names if not name.startswith(".")]
    files = [file for file in files if file.suffix.lower() in SUFFIXES and not os.path.isdir(file)]
    if not files:
        raise InputError("folder holds no usable file", str(path), f"put {', '.join(SUFFIXES)} files into it")
    return files


def corpus_hash(source: str, *, which: str = "text") -> str:
    """SHA-256 (hex) of names and bytes of a source's files: equal content has the same hash, wherever it lies."""
    digest = hashlib.sha256()
    for path in corpus_files(source, which=which):
        data = read_bytes(path)
        digest.update(b"%d %s %d\n" % (len(os.fsencode(path.name)), os.fsencode(path.name), len(data)))
        digest.update(data)
    return digest.hexdigest()


# ---- bytes to text -----------------------------------------------------------------------------------------


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise InputError(f"cannot be read ({reason})", str(path), "check path and permissions") from exc


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Errors: InputError for anything else. A FIFO or a device is refused before it is opened, because opening it would
    wait for a writer.
    """
    info = _stat(path)
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a pipe, socket or device"
        raise InputError(f"is {kind}, not a regular file", str(path), "give a regular file")
    if limit is not None and info.st_size > limit:
        raise InputError(f"file of {info.st_size} bytes is over the limit of {limit}", str(path))
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"cannot be read ({exc.strerror})", str(path), "check path and permissions") from exc


def _line(text: str | bytes, position: int) -> int:
    before = text[:position]
    return 1 + (before.count("\n") if isinstance(before, str) else before.count(b"\n"))


def unmarked(text: str) -> str:
    """Text without byte order marks (U+FEFF), wherever they stand: one is never a letter."""
    return text.replace(_MARK, "")


def read_text(path: Path, errors: str) -> str:
    """Read a file as UTF-8 text, without byte order marks, with every line end (CRLF, lone CR) as LF."""
    data = read_bytes(path)
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            raise InputError(f"file is {kind}, not UTF-8 text", f"{path}:1", "unpack or convert it first")
    data = data.replace(_MARK.encode(), b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    nul = data.find(b"\0")
    if nul >= 0:
        where = f"{path}:{_line(data, nul)}"
        raise InputError("file is binary (it holds a NUL byte)", where, "give UTF-8 text")
    try:
        text = data.decode("utf-8", errors="replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as exc:
        where = f"{path}:{_line(data, exc.start)}"
        todo = 'convert the file, or set corpus.errors = "replace"'
        raise InputError(f"invalid UTF-8 (byte 0x{data[exc.start]:02x})", where, todo) from exc
    if not text.strip():
        raise InputError("file is empty" if not data else "file holds nothing but white space", str(path))
    return text


def text_documents(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text): each line is a document; if blank lines separate, each paragraph."""
    paragraphs = re.search(r"\n[^\S\n]*\n", text.strip()) is not None
    block, start = list[str](), 0
    # Not splitlines(): for it a line ends at U+2028 or a form feed, too, which may stand inside a sentence.
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            start = start if block else number
            block.append(line)
        if block and not (paragraphs and line.strip()):
            yield start, "\n".join(block).strip()
            block = []


# ---- JSON --------------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return result


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:40]} is not finite")
    return value


def _integer(text: str) -> int:
    _number(text)  # one that no float holds would fail wherever it is used as a number
    return int(text)


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_int=_integer, parse_constant=_constant
)


def parse_json(text: str, where: str) -> Any:
    """Parse one JSON value strictly: no NaN or infinity, no field given twice, no nesting too deep for Python.

    Errors: InputError with `where`.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as exc:
        raise InputError("JSON is nested too deep", where) from exc
    except ValueError as exc:
        raise InputError(f"invalid JSON ({_reason(exc)})", where) from exc


def _reason(exc: ValueError) -> str:
    return f"{exc.msg}, column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else str(exc)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of JSON Lines or of one array; the first character tells which, not the suffix."""
    if _ESCAPED_MARK.search(text):  # a search is fast; behind a backslash that is itself escaped there is no escape
        text = re.sub(rf"(?<!\\)((?:\\\\)*){_ESCAPED_MARK.pattern}", r"\1", text)
    if text.lstrip().startswith("["):
        yield from _array_rows(text, path)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}:{number}")


def _array_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    # Element by element, because json.loads would forget on which line each of them stood.
    def skip(position: int) -> int:
        found = _JSON_SPACE.match(text, position)
        return found.end() if found else position

    position = skip(text.index("[") + 1)
    line, counted = 1, 0
    first = True
    while text[position : position + 1] != "]":
        if not first:
            if text[position : position + 1] != ",":
                where = f"{path}:{_line(text, position)}"
                raise InputError("invalid JSON (expected ',' or ']' after an element of the array)", where)
            position = skip(position + 1)
        first = False
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except RecursionError as exc:
            raise InputError("JSON is nested too deep", f"{path}:{line}") from exc
        except ValueError as exc:
            where = f"{path}:{exc.lineno if isinstance(exc, json.JSONDecodeError) else line}"
            raise InputError(f"invalid JSON ({_reason(exc)})", where) from exc
        yield line, value
        position = skip(end)
    position = skip(position + 1)
    if position < len(text):
        where = f"{path}:{_line(text, position)}"
        raise InputError("invalid JSON (text after the end of the array)", where)


# ---- rows --------------------------------------------------------------------------------------------------


def rows_of(path: Path, errors: str) -> Iterator[tuple[str, Any]]:
    """Yield (FILE:LINE, row) of JSON Lines, a JSON array, or Parquet (FILE:ROW); InputError if there is none.

    A field whose value is null is left out: it means the same as a field that is absent.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(read_text(path, errors), path)
    empty = True
    for number, row in rows:
        empty = False
        given = {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row
        yield f"{path}:{number}", given
    if empty:
        raise InputError("file holds no row", str(path))


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number, fields by name)."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow", str(path), "pip install 'minirlhf[parquet]'") from None
    data = read_bytes(path)
    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
        rows = [_unmarked_values(row) for row in table.to_pylist()]
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as exc:
        reason = " ".join(str(exc).split())[:100]
        raise InputError(f"not readable as Parquet ({reason})", str(path), "write it again") from exc
    names = [unmarked(name) for name in table.column_names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"column {twice!r} is given twice", str(path), "rename one of them")
    yield from enumerate(rows, start=1)


def _unmarked_values(value: Any) -> Any:
    """The value with every text in it, names included, without byte order marks."""
    if isinstance(value, str):
        return unmarked(value)
    if isinstance(value, list):
        return [_unmarked_values(item) for item in value]
    if isinstance(value, dict):
        return {unmarked(name): _unmarked_values(item) for name, item in value.items()}
    return value


# ---- fields ------------------------------------------------------------------------------------------------


def names_of(names: Iterable[str]) -> str:
    """First few of some names, for messages."""
    listed = [repr(name[:40]) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") or "none"


def kind_of(value: Any) -> str:
    """JSON's word for a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def clean(value: Any, name: str, where: str, errors: str) -> str:
    """Field as text with LF line ends, not empty; InputError for anything else."""
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {kind_of(value)}, not a string", where)
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    if _SURROGATE.search(text):  # an escape like \ud83d without its other half: no UTF-8 can hold it
        if errors != "replace":
            todo = 'repair the escape, or set corpus.errors = "replace"'
            raise InputError(f"{name!r} holds half of a surrogate pair", where, todo)
        text = _SURROGATE.sub("\ufffd", text)
    if not text.strip():
        raise InputError(f"{name!r} is empty", where, "remove the row")
    return text
