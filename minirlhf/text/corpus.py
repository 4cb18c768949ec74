"""Readers of text, prompts and comparisons, their splits, and the content hash that names a corpus.

A source is a file (`.txt`, `.jsonl`, `.json`), a folder of them, or the bare name of a packaged corpus. The
result is a list of documents, prompts or comparisons, or one `InputError` that names file and line, whatever a file
holds.

Not here: Parquet, downloads, and files that are compressed or not UTF-8.
"""

import hashlib
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minirlhf.errors import InputError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

SUFFIXES = (".txt", ".jsonl", ".json")
PROMPT_FIELDS = ("prompt", "query", "question")
# A wheel carries the corpora inside the package; in a checkout they lie beside it.
PACKAGED_ROOTS = (Path(__file__).parents[1] / "corpora", Path(__file__).parents[2] / "corpora")

# Of a small corpus a fifth is held out, up to this many documents: a share of 2 % would leave hardly a text
# to measure the loss on, and hardly an opening to prompt with.
FEW_HELD_OUT = 64
FEW_PROMPTS = 10

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

# Letters of scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Chinese.
_SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_SPACE = re.compile(r"[ \t\n]*")


@dataclass(frozen=True)
class Document:
    """One text to learn from; `columns` are the other fields of its row."""

    text: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """One text to continue; `columns` are the other fields of its row, for rewards; `where` is FILE:LINE."""

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Comparison:
    """Which of two completions of a prompt somebody prefers; `where` is FILE:LINE.

    margin: how much better at least, in score units (0 = not said); probability that `chosen` is the better one, where
    a file says so (1 = it is); gap = how much better `chosen` really is, where somebody knows: for reports, never for
    training.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    probability: float = 1.0
    where: str = field(default="", compare=False)
    gap: float | None = None


# ---- where a source is -------------------------------------------------------------------------------------


def packaged_names() -> list[str]:
    """Names of the corpora that come with the program, sorted."""
    folders = [folder for root in PACKAGED_ROOTS if root.is_dir() for folder in root.iterdir()]
    return sorted({folder.name for folder in folders if any(folder.glob("*.jsonl"))})


def is_packaged(source: str) -> bool:
    """Is this a bare name (no slash, no suffix), which means a packaged corpus, rather than a path?"""
    return source != "" and "." not in source and os.path.basename(source) == source


def packaged(name: str) -> Path:
    """The folder of the packaged corpus `name`: package data first, else `corpora/` beside the package.

    Errors: InputError that lists the names there are.
    """
    if name in packaged_names():
        return next(root / name for root in PACKAGED_ROOTS if any((root / name).glob("*.jsonl")))
    todo = f"packaged are: {', '.join(packaged_names()) or 'none'}; a path of your own needs a slash"
    if os.path.exists(name):
        todo += f" (./{name})"
    raise InputError("no packaged corpus of this name", repr(name), todo)


def corpus_files(source: str, *, which: str = "text") -> list[Path]:
    """The files of a source: itself, a folder's usable files by name, or `which`.jsonl of a packaged corpus.

    A folder is read one level deep; hidden files and other kinds (a README, a licence) are left out.
    Errors: InputError for a path that does not exist, a folder without usable files, an unusable suffix.
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
    """SHA-256 (hex) of names and bytes of a source's files: equal content has one hash, wherever it lies."""
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
    """The bytes of a regular file of at most `limit` bytes.

    Errors: InputError for whatever is not one. A FIFO or a device is refused before it is opened, for that
    would wait for a writer.
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


def _read_text(path: Path, errors: str) -> str:
    """A file as text: UTF-8, no byte order mark, every line end (CRLF, lone CR) as LF."""
    data = read_bytes(path)
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            raise InputError(f"file is {kind}, not UTF-8 text", f"{path}:1", "unpack or convert it first")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
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


def _text_documents(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text): a line is a document; where blank lines separate, a paragraph is."""
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


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)


def parse_json(text: str, where: str) -> Any:
    """One JSON value, strictly: no NaN or infinity, no field given twice, no nesting too deep for Python.

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
    """(line number, value) of JSON Lines or of one array: the first character tells, whatever the suffix."""
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


# ---- rows to documents and prompts -------------------------------------------------------------------------


def _names(names: Iterable[str]) -> str:
    listed = [repr(name[:40]) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") or "none"


def _field(row: Any, accepted: tuple[str, ...], where: str) -> str:
    """Which of the accepted fields the row has: exactly one."""
    if not isinstance(row, dict):
        raise InputError(f"row is {_kind(row)}, not an object", where, f'write {{"{accepted[0]}": "..."}}')
    present = [name for name in accepted if name in row]
    if len(present) > 1:
        raise InputError(f"row has {_names(present)}, which mean the same", where, "keep one of them")
    if present:
        return present[0]
    needed = " or ".join(accepted)
    prompts = [name for name in PROMPT_FIELDS if name in row]
    if prompts:
        what = f"row has {prompts[0]!r} but no {needed!r}: this is a file of prompts, not of documents"
        raise InputError(what, where, "give it as corpus.prompts, and a file of documents as corpus.text")
    if "text" in row:
        what = "row has 'text' but no prompt: this is a file of documents, not of prompts"
        raise InputError(what, where, f"give it as corpus.text, or name the field {needed}")
    raise InputError(f"row has no {needed} (its fields: {_names(row)})", where, f"add {accepted[0]!r}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _clean(value: Any, name: str, where: str, errors: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {_kind(value)}, not a string", where)
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    if _SURROGATE.search(text):  # an escape like \ud83d without its other half: no UTF-8 can hold it
        if errors != "replace":
            todo = 'repair the escape, or set corpus.errors = "replace"'
            raise InputError(f"{name!r} holds half of a surrogate pair", where, todo)
        text = _SURROGATE.sub("\ufffd", text)
    if not text.strip():
        raise InputError(f"{name!r} is empty", where, "remove the row")
    return text


def _read(
    source: str, which: str, accepted: tuple[str, ...], errors: str, reserved: Collection[str]
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(text, columns, FILE:LINE) of every row of a source."""
    for path in corpus_files(source, which=which):
        text = _read_text(path, errors)
        if path.suffix.lower() == ".txt":
            for number, part in _text_documents(text):
                yield part, {}, f"{path}:{number}"
            continue
        empty = True
        for number, row in _json_rows(text, path):
            empty = False
            where = f"{path}:{number}"
            if which == "text" and isinstance(row, dict) and {"chosen", "rejected"} <= row.keys():
                liked, _ = _comparison(row, where, errors)  # a comparison is a text, too: the better one
                yield f"{liked.prompt}{liked.chosen}", {}, where
                continue
            name = _field(row, accepted, where)
            columns = {key: value for key, value in row.items() if key != name}
            taken = [key for key in columns if key in reserved]
            if taken:
                raise InputError(f"field {taken[0]!r} is an input of every reward", where, "rename it")
            yield _clean(row[name], name, where, errors), columns, where
        if empty:
            raise InputError("file holds no row", str(path))


def read_documents(source: str, errors: str = "strict") -> list[Document]:
    """The documents of a source: lines or paragraphs of `.txt`, the field `text` of `.json` and `.jsonl`; of a
    comparison its prompt with what was chosen.

    `errors`: "strict", or "replace" (U+FFFD for what is not UTF-8). Errors: InputError with FILE:LINE.
    """
    return [Document(text, columns) for text, columns, _ in _read(source, "text", ("text",), errors, ())]


def read_prompts(
    source: str, errors: str = "strict", *, which: str = "prompts", reserved: Collection[str] = ()
) -> list[Prompt]:
    """The prompts of a source: lines or paragraphs of `.txt`, `prompt` (or `query`, `question`) of JSON rows.

    `which`: the file of a packaged corpus, "prompts" or "heldout_prompts". `reserved`: names that no further
    field may have, because a reward's own inputs are called so. Duplicates stay (`fit_prompts` reports them).
    Errors: InputError with FILE:LINE.
    """
    rows = _read(source, which, PROMPT_FIELDS, errors, reserved)
    return [Prompt(text, columns, where) for text, columns, where in rows]


# ---- comparisons -------------------------------------------------------------------------------------------


def read_comparisons(
    source: str, errors: str = "strict", *, which: str = "comparisons"
) -> tuple[list[Comparison], list[str]]:
    """(comparisons, notes on rows that were left out) of JSON rows with `chosen` and `rejected`.

    The prompt is `prompt` (or `query`, `question`), or what both sides begin with where there is none (up to a white
    space, if there is one). Each may be a string, or a list of {"role", "content"}: the contents follow each other
    line by line. `margin`, `probability` and `gap` are optional. A row whose sides are equal, or one of them empty,
    teaches nothing: it is left out, and the note says where. `which`: the file of a packaged corpus. Errors:
    InputError with FILE:LINE.
    """
    found, dropped = list[Comparison](), list[str]()
    for path in corpus_files(source, which=which):
        if path.suffix.lower() == ".txt":
            todo = 'give JSON Lines with "prompt", "chosen" and "rejected"'
            raise InputError("comparisons cannot be read from .txt", str(path), todo)
        rows = list(_json_rows(_read_text(path, errors), path))
        if not rows:
            raise InputError("file holds no row", str(path))
        for number, row in rows:
            where = f"{path}:{number}"
            comparison, fault = _comparison(row, where, errors)
            if fault:
                dropped.append(f"{where}: {fault}: the row is left out")
            else:
                found.append(comparison)
    if not found:
        raise InputError("there is no comparison to learn from", source, dropped[0] if dropped else "")
    more = [f"and {len(dropped) - 3} rows more like these"] if len(dropped) > 3 else []
    return found, dropped[:3] + more


def _comparison(row: Any, where: str, errors: str) -> tuple[Comparison, str]:
    """A row as a comparison, and why it teaches nothing ("" = it does)."""
    if not isinstance(row, dict):
        raise InputError(f"row is {_kind(row)}, not an object", where, 'write {"prompt", "chosen", "rejected"}')
    for name in ("chosen", "rejected"):
        if name not in row:
            todo = 'a comparison has "prompt", "chosen" and "rejected"'
            raise InputError(f"row has no {name!r} (its fields: {_names(row)})", where, todo)
    given = [name for name in PROMPT_FIELDS if name in row]
    if len(given) > 1:
        raise InputError(f"row has {_names(given)}, which mean the same", where, "keep one of them")
    chosen, rejected = (_side(row[name], name, where, errors) for name in ("chosen", "rejected"))
    if given:
        prompt = _side(row[given[0]], given[0], where, errors)
        if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):  # both sides hold the prompt again
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if any(isinstance(row[name], list) for name in (given[0], "chosen", "rejected")):
            chosen, rejected = f"\n{chosen.lstrip()}", f"\n{rejected.lstrip()}"
    else:
        prompt = _shared(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    margin = _amount(row, "margin", where, 0.0, 0.0, math.inf)
    probability = _amount(row, "probability", where, 1.0, 0.0, 1.0)
    gap = None if row.get("gap") is None else _amount(row, "gap", where, 0.0, -math.inf, math.inf)
    fault = ""
    if chosen == rejected:
        fault = "chosen and rejected are the same"
    elif not chosen.strip() or not rejected.strip():
        fault = f"{'chosen' if not chosen.strip() else 'rejected'} is empty"
    return Comparison(prompt, chosen, rejected, margin, probability, where, gap), fault


def _side(value: Any, name: str, where: str, errors: str) -> str:
    """A string, or the contents of a list of messages, as text; it may be empty."""
    if isinstance(value, list):
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise InputError(f'{name!r} holds a message without "content"', where, 'write {"role", "content"}')
        value = "\n".join(message["content"] for message in value)
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {_kind(value)}, not a string or a list of messages", where)
    return _clean(value, name, where, errors) if value.strip() else ""


def _shared(chosen: str, rejected: str) -> str:
    """What both begin with, back to the last white space: what is left begins with a whole word."""
    short = min(len(chosen), len(rejected))
    length = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    cut = max((i for i in range(length, 0, -1) if chosen[i - 1].isspace()), default=0)
    return chosen[: cut or length].rstrip()


def _amount(row: dict[str, Any], name: str, where: str, missing: float, low: float, high: float) -> float:
    value = row.get(name, missing)
    if value is None:
        return missing
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name!r} is {_kind(value)} outside {low:g} to {high:g}", where, "give a number inside it")
    return float(value)


# ---- splits ------------------------------------------------------------------------------------------------


def _by_hash(texts: Iterable[str]) -> list[str]:
    """Unique texts in the order of their SHA-256: a shuffle that depends on nothing but the texts."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())


def split_documents(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(training, held out) by hash of the text: `share` of the distinct texts.

    Of a small corpus it is more: a fifth or 64 texts, whichever is less. Neither side is empty, equal texts
    stay together, and the order of the documents plays no part. A corpus of one text is cut in two, the last
    tenth held out. Errors: InputError if that leaves nothing on a side.
    """
    ranked = _by_hash(document.text for document in documents)
    if not ranked:
        raise InputError("the corpus holds no document", todo="add text")
    if len(ranked) == 1:
        return _cut(documents[0])
    few = min(FEW_HELD_OUT, len(ranked) // 5)
    count = min(max(round(share * len(ranked)), few, 1), len(ranked) - 1)
    held_out = set(ranked[:count])
    return (
        [document for document in documents if document.text not in held_out],
        [document for document in documents if document.text in held_out],
    )


def _cut(document: Document) -> tuple[list[Document], list[Document]]:
    text = document.text.strip()
    limit = len(text) * 9 // 10
    space = next((i for i in range(limit, max(limit - 1000, 0), -1) if text[i].isspace()), limit)
    parts = text[:space].rstrip(), text[space:].lstrip()
    if not all(parts):
        raise InputError("the corpus is one document, too short to hold a part of it out", todo="add text")
    return [Document(parts[0], document.columns)], [Document(parts[1], document.columns)]


def split_prompts(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt], str | None]:
    """(training, held out, note): a fifth of the distinct prompts by hash; under ten, all serve as both."""
    ranked = _by_hash(prompt.text for prompt in prompts)
    if len(ranked) < FEW_PROMPTS:
        note = f"only {len(ranked)} distinct prompts: evaluation uses the training prompts, none is held out"
        return list(prompts), list(prompts), note
    held_out = set(ranked[: len(ranked) // 5])
    return (
        [prompt for prompt in prompts if prompt.text not in held_out],
        [prompt for prompt in prompts if prompt.text in held_out],
        None,
    )


def openings(documents: Sequence[Document], words: int) -> list[Prompt]:
    """The distinct openings of the documents that go on after them, in order: prompts where there are none.

    An opening is the first `words` words, or as many characters where most letters are of a script without
    spaces (Chinese, Japanese, Thai, ...). It has no columns: several documents may share it.
    """
    found = dict.fromkeys(_opening(document.text.strip(), words) for document in documents)
    return [Prompt(text) for text in found if text]


def _opening(text: str, words: int) -> str:
    """The opening of one text, "" if the text is no longer than that."""
    head = text[:200]
    if 2 * len(_SPACELESS.findall(head)) > sum(character.isalpha() for character in head):
        end = words
        while end < len(text) and unicodedata.category(text[end]).startswith("M"):
            end += 1  # a vowel sign belongs to the letter before it
        return text[:end].rstrip() if end < len(text) else ""
    parts = text.split(maxsplit=words)
    return text[: -len(parts[-1])].rstrip() if len(parts) > words else ""


def fit_prompts(prompts: Sequence[Prompt], tokenizer: "Tokenizer", max_tokens: int) -> tuple[list[Prompt], str | None]:
    """(prompts of at most `max_tokens` tokens, BOS not counted; a note on what was dropped or repeats).

    Errors: InputError if none is left.
    """
    if not prompts:
        raise InputError("there is no prompt", todo="give corpus.prompts, or documents of more words")
    lengths = [len(ids) for ids in tokenizer.encode_batch([prompt.text for prompt in prompts])]
    kept, dropped = list[Prompt](), list[Prompt]()
    for prompt, length in zip(prompts, lengths, strict=True):
        (kept if length <= max_tokens else dropped).append(prompt)
    if not kept:
        what = f"no prompt fits: the shortest of {len(prompts)} has {min(lengths)} tokens, {max_tokens} fit"
        raise InputError(what, _show(dropped[0]), "raise model.max_positions or lower sampler.max_new_tokens")
    notes = []
    if dropped:
        what = f"{len(dropped)} of {len(prompts)} prompts exceed {max_tokens} tokens and are dropped"
        notes.append(f"{what}, the first: {_show(dropped[0])}")
    repeats = len(kept) - len({prompt.text for prompt in kept})
    if repeats:
        notes.append(f"{repeats} of {len(kept)} prompts repeat another and are kept")
    return kept, "; ".join(notes) or None


def _show(prompt: Prompt) -> str:
    line = prompt.text.strip().split("\n")[0]
    return f"{prompt.where} {line[:40]!r}{'...' if len(line) > 40 else ''}".strip()
