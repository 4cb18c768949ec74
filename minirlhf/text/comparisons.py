"""Readers of rows with two sides: comparisons (prompt, chosen, rejected) and demonstrations (prompt, completion).

A side is a string, or a conversation (chat.py). The files are those of files.py, except `.txt`. Not here: documents and
prompts (corpus.py), and ids (tokenizer.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from minirlhf.errors import InputError
from minirlhf.text.chat import shared_messages, split_answer, text_of
from minirlhf.text.files import corpus_files, kind_of, names_of, rows_of

PROMPT_FIELDS = ("prompt", "query", "question")


@dataclass(frozen=True)
class Comparison:
    """Judgement on two completions of a prompt; `where` is FILE:LINE.

    margin: least difference in score units (0: not given). probability: that `chosen` is the better one (1: certain).
    gap: true difference, if it is known; it is used in reports, never in training.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    probability: float = 1.0
    where: str = field(default="", compare=False)
    gap: float | None = None


@dataclass(frozen=True)
class Demonstration:
    """Prompt and the completion that should follow it; `where` is FILE:LINE."""

    prompt: str
    completion: str
    where: str = field(default="", compare=False)


Row = TypeVar("Row", Comparison, Demonstration)


def read_comparisons(
    source: str, errors: str = "strict", *, which: str = "comparisons"
) -> tuple[list[Comparison], list[str]]:
    """Read JSON rows with `chosen` and `rejected`; return (comparisons, notes on rows that were left out).

    The prompt is `prompt` (or `query`, `question`); without one it is the longest common prefix of both sides, cut at a
    word boundary. `margin`, `probability` and `gap` are optional. A row whose sides are equal, or one of them empty,
    teaches nothing: it is left out, and the note says where. which: file of a packaged corpus. Errors: InputError with
    FILE:LINE.
    """
    found, notes = _useful(source, which, errors, comparison_of, '"prompt", "chosen" and "rejected"')
    if not found:
        raise InputError("there is no comparison to learn from", source, notes[0] if notes else "")
    return found, notes


def read_demonstrations(
    source: str, errors: str = "strict", *, which: str = "demonstrations"
) -> tuple[list[Demonstration], list[str]]:
    """Read rows with `prompt` and `completion`; return (demonstrations, notes on rows that were left out).

    The prompt is `prompt` (or `query`, `question`), or empty. A row of `messages` alone is a conversation; its last
    message, by the assistant, is the completion. A comparison serves with its chosen side. A row with an empty
    completion is left out, and the note says where. which: file of a packaged corpus. Errors: InputError with
    FILE:LINE.
    """
    found, notes = _useful(source, which, errors, demonstration_of, '"prompt" and "completion"')
    if not found:
        raise InputError("there is no demonstration to learn from", source, notes[0] if notes else "")
    return found, notes


def check_enough(rows: Sequence[Any], source: str) -> None:
    """Raise InputError if there are fewer rows than can be divided."""
    if len(rows) < 2:
        raise InputError("one row cannot be learned from and held out", source, "give two at least")


class HasPrompt(Protocol):
    """Row that `hold_out` can divide."""

    @property
    def prompt(self) -> str: ...


P = TypeVar("P", bound=HasPrompt)


def hold_out(rows: Sequence[P], share: float, random: torch.Generator) -> tuple[list[P], list[P]]:
    """Split two rows or more into (training, held out): whole prompts, at least one; rows, if all have one prompt."""
    prompts = sorted({row.prompt for row in rows})
    by_prompt = len(prompts) > 1
    count = len(prompts) if by_prompt else len(rows)
    order: list[int] = torch.randperm(count, generator=random).tolist()
    out = set(order[: min(max(1, round(share * count)), count - 1)])
    if by_prompt:
        held = {prompts[i] for i in out}
        out = {i for i, row in enumerate(rows) if row.prompt in held}
    return [row for i, row in enumerate(rows) if i not in out], [row for i, row in enumerate(rows) if i in out]


def _useful(
    source: str, which: str, errors: str, read: Callable[[Any, str, str], tuple[Row, str]], fields: str
) -> tuple[list[Row], list[str]]:
    """Parse each row; return (parsed rows, one FILE:LINE note per skipped row)."""
    found, dropped = list[Row](), list[str]()
    for path in corpus_files(source, which=which):
        if path.suffix.lower() == ".txt":
            raise InputError(f"{which} cannot be read from .txt", str(path), f"give JSON Lines with {fields}")
        for where, row in rows_of(path, errors):
            value, fault = read(row, where, errors)
            if fault:
                dropped.append(f"{where}: {fault}: the row is left out")
            else:
                found.append(value)
    more = [f"and {len(dropped) - 3} rows more like these"] if len(dropped) > 3 else []
    return found, dropped[:3] + more


def has_sides(row: Any) -> bool:
    """True if a row is a comparison or a demonstration; a row with a `text` is a document, whatever else it has."""
    if not isinstance(row, dict) or "text" in row:
        return False
    return {"chosen", "rejected"} <= row.keys() or not {"completion", "messages"}.isdisjoint(row)


def demonstration_of(row: Any, where: str, errors: str) -> tuple[Demonstration, str]:
    """(demonstration, reason why the row teaches nothing; "" if it does)."""
    if isinstance(row, dict) and {"chosen", "rejected"} <= row.keys():
        liked, fault = comparison_of(row, where, errors)
        return Demonstration(liked.prompt, liked.chosen, where), fault
    if not isinstance(row, dict):
        raise InputError(f"row is {kind_of(row)}, not an object", where, 'write {"prompt", "completion"}')
    if "messages" in row:
        row = _conversation(row, where, errors)
    if "completion" not in row:
        todo = 'a demonstration has "prompt" and "completion", or "messages"'
        raise InputError(f"row has no 'completion' (its fields: {names_of(row)})", where, todo)
    name = _prompt_field(row, where)
    prompt = text_of(row[name], name, where, errors) if name else ""
    completion = text_of(row["completion"], "completion", where, errors)
    if prompt and any(isinstance(row[key], list) for key in (name, "completion")):
        completion = f"\n{completion.lstrip()}"
    return Demonstration(prompt, completion, where), "" if completion.strip() else "completion is empty"


def _conversation(row: dict[str, Any], where: str, errors: str) -> dict[str, Any]:
    """Split a row of `messages` into prompt and completion."""
    if "completion" in row or any(name in row for name in PROMPT_FIELDS):
        raise InputError("row has 'messages' and a prompt or completion beside it", where, "keep one of them")
    given, answer = split_answer(row["messages"], where)
    if not answer:
        raise InputError("the last message is not the assistant's", where, "end with what is to be learned")
    text_of(row["messages"], "messages", where, errors)  # so that a fault names its place among all of them
    return {"prompt": given, "completion": answer}


def _prompt_field(row: dict[str, Any], where: str) -> str | None:
    """Name of the prompt's field in a row, or None."""
    given = [name for name in PROMPT_FIELDS if name in row]
    if len(given) > 1:
        raise InputError(f"row has {names_of(given)}, which mean the same", where, "keep one of them")
    return given[0] if given else None


def comparison_of(row: Any, where: str, errors: str) -> tuple[Comparison, str]:
    """(comparison, reason why the row teaches nothing; "" if it does)."""
    if not isinstance(row, dict):
        raise InputError(f"row is {kind_of(row)}, not an object", where, 'write {"prompt", "chosen", "rejected"}')
    for name in ("chosen", "rejected"):
        if name not in row:
            todo = 'a comparison has "prompt", "chosen" and "rejected"'
            raise InputError(f"row has no {name!r} (its fields: {names_of(row)})", where, todo)
    given = _prompt_field(row, where)
    chosen, rejected = (text_of(row[name], name, where, errors) for name in ("chosen", "rejected"))
    shared = 0 if given else shared_messages(row["chosen"], row["rejected"])
    if shared:  # the messages that both sides begin with are the prompt
        sides = {name: row[name][shared:] for name in ("chosen", "rejected")}
        row, given = {**row, **sides, "prompt": row["chosen"][:shared]}, "prompt"
        chosen, rejected = (text_of(row[name], name, where, errors) for name in ("chosen", "rejected"))
    if given:
        prompt = text_of(row[given], given, where, errors)
        lines = prompt and any(isinstance(row[name], list) for name in (given, "chosen", "rejected"))
        again = f"{prompt}\n" if isinstance(row["chosen"], list) and isinstance(row["rejected"], list) else prompt
        if prompt and chosen.startswith(again) and rejected.startswith(again):  # both sides hold the prompt again
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if lines:
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


def _shared(chosen: str, rejected: str) -> str:
    """Longest common prefix of chosen and rejected, cut at a word boundary; it serves as the prompt."""
    short = min(len(chosen), len(rejected))
    length = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    cut = max((i for i in range(length, 0, -1) if chosen[i - 1].isspace()), default=0)
    return chosen[: cut or length].rstrip()


def _amount(row: dict[str, Any], name: str, where: str, missing: float, low: float, high: float) -> float:
    value = row.get(name, missing)
    if value is None:
        return missing
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name!r} is {kind_of(value)} outside {low:g} to {high:g}", where, "give a number inside it")
    return float(value)
