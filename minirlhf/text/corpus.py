"""Documents and prompts: their readers, their splits, and openings that serve as prompts.

The result is a list of documents or prompts, or one InputError that names file and line, whatever a file holds. Not
here: file formats (files.py), and rows with two sides (comparisons.py).
"""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minirlhf.errors import InputError
from minirlhf.text.boundary import SPACELESS, ending_note
from minirlhf.text.chat import messages_of, split_answer, text_of
from minirlhf.text.comparisons import PROMPT_FIELDS, comparison_of, demonstration_of, has_sides
from minirlhf.text.files import clean, corpus_files, kind_of, names_of, read_text, rows_of, text_documents
from minirlhf.text.splits import held_out_groups

if TYPE_CHECKING:
    from .tokenizer import Conversation, Tokenizer

# Of a small corpus a fifth is held out, up to this many documents: a share of 2 % would leave hardly a text
# to measure the loss on, and hardly an opening to prompt with.
FEW_HELD_OUT = 64
FEW_PROMPTS = 10


@dataclass(frozen=True)
class Document:
    """Text to learn from; columns: the other fields of its row; start: index of its completion, 0 for plain text."""

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Prompt:
    """Text to continue; columns: the other fields of its row, for rewards; where: FILE:LINE; spoken: its messages.

    A conversation has both: the text, which rewards see, and the messages, for a chat template.
    """

    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    spoken: "Conversation | None" = field(default=None, compare=False)


# ---- rows to documents and prompts -------------------------------------------------------------------------


def _field(row: Any, accepted: tuple[str, ...], where: str) -> str:
    """Name of the accepted field that a row has; InputError unless it has exactly one."""
    if not isinstance(row, dict):
        raise InputError(f"row is {kind_of(row)}, not an object", where, f'write {{"{accepted[0]}": "..."}}')
    present = [name for name in accepted if name in row]
    if len(present) > 1:
        raise InputError(f"row has {names_of(present)}, which mean the same", where, "keep one of them")
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
    raise InputError(f"row has no {needed} (its fields: {names_of(row)})", where, f"add {accepted[0]!r}")


def _read(
    source: str, which: str, accepted: tuple[str, ...], errors: str, reserved: Collection[str]
) -> Iterator[tuple[str, dict[str, Any], str, int, "Conversation | None"]]:
    """Yield (text, columns, FILE:LINE, start of a completion in the text or 0, messages) of every row of a source."""
    for path in corpus_files(source, which=which):
        if path.suffix.lower() == ".txt":
            for number, part in text_documents(read_text(path, errors)):
                yield part, {}, f"{path}:{number}", 0, None
            continue
        for where, row in rows_of(path, errors):
            if which == "text" and has_sides(row):  # a comparison is a text, too: the better one; so is an answer
                shown, fault = demonstration_of(row, where, errors)
                if not shown.completion.strip():
                    raise InputError(fault, where, "remove the row")
                yield f"{shown.prompt}{shown.completion}", {}, where, len(shown.prompt), None
                continue
            name, text, spoken = _prompt_or_text(row, accepted, where, errors)
            columns = {key: value for key, value in row.items() if key != name}
            taken = [key for key in columns if key in reserved]
            if taken:
                raise InputError(f"field {taken[0]!r} is an input of every reward", where, "rename it")
            yield text, columns, where, 0, spoken


def _prompt_or_text(
    row: Any, accepted: tuple[str, ...], where: str, errors: str
) -> tuple[str, str, "Conversation | None"]:
    """(name of the field that holds the text, text, its messages if it is a conversation) of a row.

    The name is "" if chosen and rejected begin with the text.
    A prompt may be a conversation. It is always the text that SFT and reward model take as the prompt of such a row.
    """
    if accepted is PROMPT_FIELDS and has_sides(row) and row.keys().isdisjoint(PROMPT_FIELDS):
        name, text, spoken = "", "", None
        if {"chosen", "rejected"} <= row.keys():
            pair, fault = comparison_of(row, where, errors)
            text, spoken = ("", None) if fault else (pair.prompt, pair.spoken)
        elif "messages" in row:
            name = "messages"
            given = split_answer(row[name], where)[0]
            text, spoken = text_of(given, name, where, errors), messages_of(given, name, where, errors)
        if not text:
            raise InputError(f"row holds no prompt (its fields: {names_of(row)})", where, f"add {accepted[0]!r}")
        return name, text, spoken
    name = _field(row, accepted, where)
    value, spoken = row[name], None
    if accepted is PROMPT_FIELDS and isinstance(value, list):
        value, spoken = text_of(value, name, where, errors), messages_of(value, name, where, errors)
    return name, clean(value, name, where, errors), spoken


def read_documents(source: str, errors: str = "strict") -> list[Document]:
    """Read the documents of a source: lines or paragraphs of `.txt`, the field `text` of other rows.

    A comparison serves with its prompt and chosen side, a demonstration with both parts. errors: "strict", or "replace"
    (U+FFFD for bytes that are not UTF-8). Errors: InputError with FILE:LINE.
    """
    rows = _read(source, "text", ("text",), errors, ())
    return [Document(text, columns, start) for text, columns, _, start, _ in rows]


def read_prompts(
    source: str, errors: str = "strict", *, which: str = "prompts", reserved: Collection[str] = ()
) -> list[Prompt]:
    """Read the prompts of a source: lines or paragraphs of `.txt`, `prompt` (or `query`, `question`) of JSON rows.

    A prompt may be a conversation. Rows of `messages`, and comparisons without a prompt, serve with what comes before
    the answer. Every prompt has the columns of all rows of the source: None where its own row lacks one.
    which: file of a packaged corpus, "prompts" or "heldout_prompts". reserved: names of a reward's own inputs, which no
    other field may have. Duplicates stay (`fit_prompts` reports them). Errors: InputError with FILE:LINE.
    """
    rows = list(_read(source, which, PROMPT_FIELDS, errors, reserved))
    missing = dict.fromkeys(name for _, columns, _, _, _ in rows for name in columns)
    return [Prompt(text, missing | columns, where, spoken) for text, columns, where, _, spoken in rows]


def common_columns(*sides: Iterable[Prompt]) -> set[str]:
    """Names of the columns that each of several lists of prompts has."""
    return set.intersection(*({name for prompt in side for name in prompt.columns} for side in sides))


# ---- splits ------------------------------------------------------------------------------------------------


def _held_out(rows: Sequence[Document | Prompt], ranked: Sequence[str], count: int, *, by_length: bool) -> set[str]:
    """The first `count` of the ranked texts whose rows (by_length: characters) do not swallow too many of all."""
    sizes = dict.fromkeys(ranked, 0)
    for row in rows:
        sizes[row.text] += len(row.text) if by_length else 1
    return {ranked[i] for i in held_out_groups([sizes[text] for text in ranked], count)}


def _by_hash(texts: Iterable[str]) -> list[str]:
    """Distinct texts in the order of their SHA-256: a shuffle that depends on nothing but the texts."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())


def split_documents(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Split documents into (training, held out) by the hash of the text: `share` of the distinct texts.

    A small corpus holds out more: a fifth or 64 texts, whichever is less. A text so long that too little would be left
    to learn from is passed over (splits.py). Neither side is empty, equal texts stay together, and the order of the
    documents has no effect. A corpus of one text is cut in two, the last tenth held out. Errors: InputError if a side
    stays empty.
    """
    ranked = _by_hash(document.text for document in documents)
    if not ranked:
        raise InputError("the corpus holds no document", todo="add text")
    if len(ranked) == 1:
        return _cut(documents[0])
    few = min(FEW_HELD_OUT, len(ranked) // 5)
    count = min(max(round(share * len(ranked)), few, 1), len(ranked) - 1)
    held_out = _held_out(documents, ranked, count, by_length=True)
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
    """Split into (training, held out, note): a fifth of the distinct prompts by hash; below ten, all serve as both.

    A prompt of so many rows that too few would be left to train on is passed over (splits.py).
    """
    ranked = _by_hash(prompt.text for prompt in prompts)
    if len(ranked) < FEW_PROMPTS:
        note = f"only {len(ranked)} distinct prompts: evaluation uses the training prompts, none is held out"
        return list(prompts), list(prompts), note
    held_out = _held_out(prompts, ranked, len(ranked) // 5, by_length=False)
    return (
        [prompt for prompt in prompts if prompt.text not in held_out],
        [prompt for prompt in prompts if prompt.text in held_out],
        None,
    )


def openings(documents: Sequence[Document], words: int) -> list[Prompt]:
    """Distinct openings of the documents that continue after them, in order; they serve as prompts if there are none.

    An opening is the first `words` words, or as many characters if most letters are of a script without spaces
    (Chinese, Japanese, Thai, ...). It has no columns, because several documents may share it.
    """
    found = dict.fromkeys(_opening(document.text.strip(), words) for document in documents)
    return [Prompt(text) for text in found if text]


def _opening(text: str, words: int) -> str:
    """Opening of one text; "" if the text is no longer than that."""
    head = text[:200]
    if 2 * len(SPACELESS.findall(head)) > sum(character.isalpha() for character in head):
        end = words
        while end < len(text) and unicodedata.category(text[end]).startswith("M"):
            end += 1  # a vowel sign belongs to the letter before it
        return text[:end].rstrip() if end < len(text) else ""
    parts = text.split(maxsplit=words)
    return text[: -len(parts[-1])].rstrip() if len(parts) > words else ""


def fit_prompts(prompts: Sequence[Prompt], tokenizer: "Tokenizer", max_tokens: int) -> tuple[list[Prompt], str | None]:
    """Keep prompts of at most `max_tokens` tokens behind their first; return (prompts, note on what is odd about them).

    Errors: InputError if none is left.
    """
    if not prompts:
        raise InputError("there is no prompt", todo="give corpus.prompts, or documents of more words")
    talks, places = [prompt.spoken for prompt in prompts], [prompt.where for prompt in prompts]
    every = tokenizer.prompt_ids([prompt.text for prompt in prompts], talks, places)
    lengths = [len(ids) - 1 for ids in every]
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
    ends = ending_note([prompt.text for prompt in kept])
    notes += [ends] if ends else []
    return kept, "; ".join(notes) or None


def _show(prompt: Prompt) -> str:
    line = prompt.text.strip().split("\n")[0]
    return f"{prompt.where} {line[:40]!r}{'...' if len(line) > 40 else ''}".strip()
