"""Readers of rows with two sides: comparisons (prompt, chosen, rejected) and demonstrations (prompt, completion).

A side is a string, or a conversation (chat.py). The files are those of files.py, except `.txt`. Not here: documents and
prompts (corpus.py), and ids (tokenizer.py).
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from minirlhf.errors import InputError
from minirlhf.text.boundary import SPACELESS
from minirlhf.text.chat import messages_of, shared_messages, split_answer, text_of
from minirlhf.text.files import corpus_files, kind_of, names_of, rows_of
from minirlhf.text.splits import held_out_groups, most_held_out, shared_note

if TYPE_CHECKING:
    from minirlhf.text.tokenizer import Conversation

LARGEST = 1e30  # of a number in a row: float32 holds it, and the sum of a batch of them
TIE = 0.5  # probability that says that neither side is better
PROMPT_FIELDS = ("prompt", "query", "question")


@dataclass(frozen=True)
class Comparison:
    """Judgement on two completions of a prompt; `where` is FILE:LINE.

    margin: least difference in score units (0: not given). probability: that `chosen` is the better one (1: certain,
    0.5: a tie; a reader swaps the sides of a row that says less). gap: true difference, if it is known; it is used in
    reports, never in training. spoken: messages of the prompt, where a side or the prompt was a conversation.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    probability: float = 1.0
    where: str = field(default="", compare=False)
    gap: float | None = None
    spoken: "Conversation | None" = field(default=None, compare=False)

    @property
    def content(self) -> Hashable:
        """Both sides, whichever is chosen: two people who disagree judged the same pair."""
        return frozenset((self.chosen, self.rejected))


@dataclass(frozen=True)
class Demonstration:
    """Prompt and the completion that should follow it; `where` is FILE:LINE; spoken: as in `Comparison`."""

    prompt: str
    completion: str
    where: str = field(default="", compare=False)
    spoken: "Conversation | None" = field(default=None, compare=False)

    @property
    def content(self) -> Hashable:
        return self.completion


Row = TypeVar("Row", Comparison, Demonstration)


def read_comparisons(
    source: str, errors: str = "strict", *, which: str = "comparisons"
) -> tuple[list[Comparison], list[str]]:
    """Read JSON rows with `chosen` and `rejected`; return (comparisons, notes on rows that were left out).

    The prompt is `prompt` (or `query`, `question`); without one it is the longest common prefix of both sides, cut at a
    word boundary. `margin`, `probability` and `gap` are optional; a row of probability p < 0.5 is read as its sides
    swapped, with probability 1 - p. A row whose sides are equal, or one of them empty, teaches nothing: it is left out,
    and the note says where. which: file of a packaged corpus. Errors: InputError with FILE:LINE.
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
    completion, and a tie, are left out, and the note says where. which: file of a packaged corpus. Errors: InputError
    with FILE:LINE.
    """
    found, notes = _useful(source, which, errors, demonstration_of, '"prompt" and "completion"')
    if not found:
        raise InputError("there is no demonstration to learn from", source, notes[0] if notes else "")
    return found, notes


class Divisible(Protocol):
    """Row that `hold_out` can divide; content: everything in it that is learned from, but for the prompt."""

    @property
    def prompt(self) -> str: ...

    @property
    def content(self) -> Hashable: ...


D = TypeVar("D", bound=Divisible)


def check_enough(rows: Sequence[Divisible], source: str) -> None:
    """Raise InputError if there are no two different rows to divide."""
    if len({(row.prompt, row.content) for row in rows}) < 2:
        what = "one row" if len(rows) < 2 else f"the same texts, in {len(rows):,} rows,"
        raise InputError(f"{what} cannot be learned from and held out", source, "give two different rows at least")


def hold_out(rows: Sequence[D], share: float, random: torch.Generator) -> tuple[list[D], list[D]]:
    """Split two different rows or more into (training, held out): `share` of the prompts, at least one, as wholes.

    Equal rows stay together. A row without a prompt is a group of its own. The held-out rows are at most twice their
    fair share, and no more than half of all where that is possible (`most_held_out`): a prompt of more rows stays in
    the training. If such prompts have most of the rows, their rows are divided like those without a prompt.
    """
    groups = _groups(rows, ())
    limit = most_held_out(len(rows), len(groups), _count(groups, share))
    large = {rows[group[0]].prompt: len(group) for group in groups if len(group) > limit}
    if 2 * sum(large.values()) > len(rows):
        groups = _groups(rows, large)
    order: list[int] = torch.randperm(len(groups), generator=random).tolist()
    taken = held_out_groups([len(groups[i]) for i in order], _count(groups, share))
    out = {row for i in taken for row in groups[order[i]]}
    return [row for i, row in enumerate(rows) if i not in out], [row for i, row in enumerate(rows) if i in out]


def _groups(rows: Sequence[Divisible], apart: Collection[str]) -> list[list[int]]:
    """Indices of the rows of each prompt, by prompt; of an empty one or one of `apart`, those of equal content."""
    found = dict[tuple[str, Hashable], list[int]]()
    for index, row in enumerate(rows):
        alone = not row.prompt or row.prompt in apart
        found.setdefault((row.prompt, row.content if alone else None), []).append(index)
    return sorted(found.values(), key=lambda group: (rows[group[0]].prompt, group[0]))


def _count(groups: Sequence[list[int]], share: float) -> int:
    """Groups to hold out: their share, at least one, and one must stay."""
    return min(max(1, round(share * len(groups))), len(groups) - 1)


def tell_shared(train: Sequence[Divisible], heldout: Sequence[Divisible], what: str) -> list[str]:
    """Note on held-out rows that are training rows too or, if none is, on those that share a prompt; none or one."""
    rows = [[(row.prompt, row.content) for row in part] for part in (train, heldout)]
    same = shared_note(rows[0], rows[1], f"held-out {what}", "remove them from one of the files")
    prompts = {row.prompt for row in train if row.prompt}
    both = sum(row.prompt in prompts for row in heldout)
    if same or not both:
        return same
    known = f"{both:,} of {len(heldout):,} held-out {what} have a prompt that is trained on as well"
    return [f"{known}, because few prompts have most of the rows: give more prompts to measure what others would do"]


def _useful(
    source: str, which: str, errors: str, read: Callable[[Any, str, str], tuple[Row, str]], fields: str
) -> tuple[list[Row], list[str]]:
    """Parse each row; return (parsed rows, note on skipped rows)."""
    found, dropped = list[Row](), list[str]()
    for path in corpus_files(source, which=which):
        if path.suffix.lower() == ".txt":
            raise InputError(f"{which} cannot be read from .txt", str(path), f"give JSON Lines with {fields}")
        for where, row in rows_of(path, errors):
            value, fault = read(row, where, errors)
            if fault:
                dropped.append(f"{where} ({fault})")
            else:
                found.append(value)
    return found, left_out(dropped, len(found) + len(dropped), which, "they teach nothing, so mend or remove them")


def left_out(dropped: Sequence[str], total: int, what: str, todo: str) -> list[str]:
    """One sentence on rows that are left out, each given as `FILE:LINE (reason)`; none if there are none.

    total: rows in all; what: their name in the plural.
    """
    if not dropped:
        return []
    more = f" and {len(dropped) - 3:,} more" if len(dropped) > 3 else ""
    return [f"{len(dropped):,} of {total:,} {what} are left out, {', '.join(dropped[:3])}{more}: {todo}"]


def has_sides(row: Any) -> bool:
    """True if a row is a comparison or a demonstration; a row with a `text` is a document, whatever else it has."""
    if not isinstance(row, dict) or "text" in row:
        return False
    return {"chosen", "rejected"} <= row.keys() or not {"completion", "messages"}.isdisjoint(row)


def demonstration_of(row: Any, where: str, errors: str) -> tuple[Demonstration, str]:
    """(demonstration, reason why the row teaches nothing; "" if it does)."""
    if isinstance(row, dict) and {"chosen", "rejected"} <= row.keys():
        liked, fault = comparison_of(row, where, errors)
        if not fault and liked.probability == TIE:
            fault = "neither side is better (a tie)"
        return Demonstration(liked.prompt, liked.chosen, where, liked.spoken), fault
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
    spoken = None
    if prompt and name and any(isinstance(row[key], list) for key in (name, "completion")):
        completion, spoken = f"\n{completion.lstrip()}", _spoken(row[name], prompt, name, where, errors)
    return Demonstration(prompt, completion, where, spoken), "" if completion.strip() else "completion is empty"


def _spoken(value: Any, prompt: str, name: str, where: str, errors: str) -> "Conversation":
    """Messages of a prompt; a string is one message of the user."""
    return messages_of(value, name, where, errors) or [{"role": "user", "content": prompt}]


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
    given, spoken = _prompt_field(row, where), None
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
            spoken = _spoken(row[given], prompt, given, where, errors)
            chosen, rejected = f"\n{chosen.lstrip()}", f"\n{rejected.lstrip()}"
    else:
        prompt = _shared(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    margin = _amount(row, "margin", where, 0.0, 0.0, LARGEST)
    probability = _amount(row, "probability", where, 1.0, 0.0, 1.0)
    gap = None if row.get("gap") is None else _amount(row, "gap", where, 0.0, -LARGEST, LARGEST)
    fault = ""
    if chosen == rejected:
        fault = "chosen and rejected are the same"
    elif not chosen.strip() or not rejected.strip():
        fault = f"{'chosen' if not chosen.strip() else 'rejected'} is empty"
    # A fact is read in one way, however it is written: the likelier side is chosen. The order of a tie says nothing.
    if probability < TIE or (probability == TIE and rejected < chosen):
        chosen, rejected, probability = rejected, chosen, 1 - probability
        gap = None if gap is None else -gap
    if probability == TIE:
        margin = 0.0  # by which no side leads
    return Comparison(prompt, chosen, rejected, margin, probability, where, gap, spoken), fault


def _shared(chosen: str, rejected: str) -> str:
    """Longest common prefix of chosen and rejected, cut at a word boundary; it serves as the prompt.

    A common beginning without white space is none, but in a script that has no spaces between words.
    """
    short = min(len(chosen), len(rejected))
    length = next((i for i in range(short) if chosen[i] != rejected[i]), short)
    cut = max((i for i in range(length, 0, -1) if chosen[i - 1].isspace()), default=0)
    if not cut and length and SPACELESS.match(chosen[length - 1]):
        return chosen[:length]
    return chosen[:cut].rstrip()


def _amount(row: dict[str, Any], name: str, where: str, missing: float, low: float, high: float) -> float:
    value = row.get(name, missing)
    if value is None:
        return missing
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name!r} is {kind_of(value)}, not a number", where, "write a number, without quotes")
    if not low <= value <= high:
        raise InputError(f"{name!r} is {value:g}, outside {low:g} to {high:g}", where, "give a number inside it")
    return float(value)
