"""Checks of a reward: its contract on texts of all kinds, and that a score depends on nothing but its own row.

Each text is scored in one batch, in the same batch again, in another order and alone. Not here: the meaning of a score.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from minirlhf.authoring.finding import SAME, Finding
from minirlhf.authoring.options import empty_options, options_needed
from minirlhf.authoring.texts import COMPLETIONS, PROMPTS, Texts, TextScores
from minirlhf.components.component import INPUTS, Built
from minirlhf.errors import UsageError, UserError, nearest
from minirlhf.text.corpus import Prompt


def check_reward(built: Built, prompts: Sequence[Prompt] = ()) -> Iterator[Finding]:
    """Yield contract, repeatable, order, batch, row without columns (if it reads columns) and time.

    Raises UsageError if the prompts lack a column that the reward reads, or if an option must be given.
    """
    texts = Texts.of(list(prompts) or [Prompt(text, {}) for text in PROMPTS])
    _require_columns(built, texts)
    started = perf_counter()
    try:
        first = texts.scored_by(built)
    except UserError as fault:
        yield _broken_contract(built, texts, fault)
        return
    seconds = perf_counter() - started
    yield Finding("contract", True, f"{len(first)} texts of all kinds, {_range(first)}")
    if built.stateful:
        yield Finding("repeatable", True, "it has a state: its scores may depend on what came before")
    else:
        yield from _independence(built, texts, first)
    if built.component.columns:
        try:
            texts.without_columns().scored_by(built)
            yield Finding("row without columns", True)
        except UserError as fault:
            yield Finding("row without columns", False, str(fault), "return None where a column is None")
    each = seconds / len(COMPLETIONS)
    slow = f": {128 * each:.0f} s for an iteration of 128" if each > 0.02 else ""
    yield Finding("time", True, f"{1000 * each:.2f} ms a completion{slow}")


def _require_columns(built: Built, texts: Texts) -> None:
    """Raise UsageError if the rows lack a column that the reward reads."""
    missing = [name for name in built.component.columns if name not in texts.columns]
    if missing:
        near = "".join(nearest(name, INPUTS["reward"]) for name in missing)
        what = f"{built.component.title} asks for {', '.join(missing)}{near}"
        raise UsageError(
            what, built.component.where, "name an input, or give prompts that have such columns: --prompts FILE"
        )


def _broken_contract(built: Built, texts: Texts, fault: UserError) -> Finding:
    """Failed contract with the first text on which the reward fails alone.

    Raises UsageError if it already fails on the plainest text with a ValueError and one of its options is empty: then
    the option is missing, and the reward is not at fault.
    """
    for i, completion in enumerate(COMPLETIONS):
        try:
            texts.rows([i]).scored_by(built)
        except UserError as alone:
            empty = empty_options(built.component, built.options)
            if i == 0 and empty and isinstance(alone.__cause__, ValueError):
                raise options_needed(built.component, empty, alone) from alone
            return Finding("contract", False, f"for the completion {completion[:20]!r}: {alone}")
    return Finding("contract", False, str(fault))


def _independence(built: Built, texts: Texts, first: Sequence[TextScores]) -> Iterator[Finding]:
    """Score the texts again, in reverse order and one by one: each score must stay the one of the first call."""
    everything = range(len(COMPLETIONS))
    reverse = list(reversed(everything))

    def again() -> Sequence[TextScores]:
        return texts.scored_by(built)

    def reversed_rows() -> Sequence[TextScores]:
        return list(reversed(texts.rows(reverse).scored_by(built)))

    def alone() -> Sequence[TextScores]:
        return [texts.rows([i]).scored_by(built)[0] for i in everything]

    yield _same("repeatable", first, again, "the same batch twice", "take no random numbers, keep no state")
    yield _same("order", first, reversed_rows, "the same texts in another order", "score each completion by itself")
    yield _same("batch", first, alone, "each text alone", "score each completion by itself, not against the others")


def _same(
    name: str, first: Sequence[TextScores], call: Callable[[], Sequence[TextScores]], what: str, todo: str
) -> Finding:
    """Finding that `call` gives the scores of the first call; if not, with the first text where it does not."""
    try:
        other = call()
    except UserError as fault:
        return Finding(name, False, f"{what}: {fault}")
    for i, (a, b) in enumerate(zip(first, other, strict=True)):
        t = _first_difference(a, b)
        if t is not None:
            before, after = (None if row is None else row[t] for row in (a, b))
            at = f" to token {t - 1}" if t else ""
            found = f"{what} gives {after}{at}, and it was {before}, for {COMPLETIONS[i][:20]!r}"
            return Finding(name, False, found, todo)
    return Finding(name, True, what)


def _first_difference(a: TextScores, b: TextScores) -> int | None:
    """Index of the first number that differs (0 = the score, t + 1 = token t), None if the two are the same."""
    if a is None or b is None:
        return None if a is b else 0
    pairs = enumerate(zip(a, b, strict=True))
    return next((t for t, (x, y) in pairs if not math.isclose(x, y, rel_tol=SAME, abs_tol=SAME)), None)


def _range(rows: Sequence[TextScores]) -> str:
    """Least and largest score, and how many rows are None, as a finding shows them."""
    scores = [row[0] for row in rows if row is not None]
    if not scores:
        return "none of which it scores"
    none = len(rows) - len(scores)
    return f"scores {min(scores):.4g} to {max(scores):.4g}" + (f", {none} None" if none else "")
