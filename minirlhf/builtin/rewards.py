"""Built-in rewards: scores of the completions' texts, one number each, computed in plain Python.

Here are the rewards a first experiment needs: `sentiment`, `length`, `keywords`, `regex`, `repetition`.
Deliberately not here: anything that loads a model. Each is graded where it can be, since a score of two
values teaches slowly, and none pays for stopping early by dividing by the length.

A *word* is what stands between spaces, without the punctuation around it; in scripts written without spaces
(Chinese, Japanese, Thai, ...) it is one character. A completion does not hold its prompt.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, Literal

from minirlhf import hookimpl
from minirlhf.exact.problems import problems

# Thai, Lao, Burmese, Khmer; kana; Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_UNSPACED_CHARACTER = re.compile(f"([{_UNSPACED}])")
_PUNCTUATION = string.punctuation + "«»‘’“”„‹›–—…·•¡¿、。〈〉《》「」『』【】・！（），．：；？～"

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_NEGATORS = {"not", "no", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "cannot"}
_NEGATORS |= {"without", "hardly", "barely", "scarcely", "rarely", "seldom"}
_CLAUSE_ENDS = set('.,;:!?()[]"…—–') | {"but", "however", "though", "although", "yet"}
_NEGATION_REACH = 3


def sentiment(completions: Sequence[str], *, scale: float = 5.0) -> list[float]:
    """Positive minus negative words, negation considered: tanh((positive - negative) / scale), in (-1, 1).

    The words are those of `sentiment_words.txt` (English; a text without any of them scores 0). A hit turns
    over when one of the three words before it, in the same clause, is a negator (not, never, no, n't, hardly,
    without, nothing, ...); two negators cancel; "not only" and "not just" do not negate. A clause ends at
    punctuation and at but, however, though, although, yet. The surplus is never divided by the number of
    words: that would reward stopping early.

    `scale` in words: a surplus of so many scores tanh(1) = 0.76. Raises ValueError unless it is positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return [math.tanh(_surplus(text) / scale) for text in completions]


def length(completions: Sequence[str], *, target: int = 40) -> list[float]:
    """How near the number of words n is to the target: min(n, target) / max(n, target), in [0, 1].

    1 at the target, the same for half and for twice of it (0.5), 0 for an empty completion. `target` in words
    (characters in scripts without spaces). Raises ValueError if the target is below 1.
    """
    if target < 1:
        raise ValueError(f"target must be at least 1 word, got {target}")
    counts = [len(_words(text)) for text in completions]
    return [min(n, target) / max(n, target) for n in counts]


def keywords(completions: Sequence[str], *, words: list[str] = []) -> list[float]:  # noqa: B006 - never changed
    """Share of the given words that occur in the completion, in [0, 1]: repeating one does not pay.

    Whole words, upper and lower case alike; an entry may be a phrase. In scripts without spaces an entry
    matches anywhere. Raises ValueError if `words` is empty or holds an empty entry.
    """
    wanted = {" ".join(word.casefold().split()) for word in words}
    if not wanted or "" in wanted:
        raise ValueError('words must name at least one word and no empty one, for example ["lens", "zoom"]')
    patterns = [_whole_word(word) for word in wanted]
    texts = [" ".join(text.casefold().split()) for text in completions]
    return [sum(bool(pattern.search(text)) for pattern in patterns) / len(patterns) for text in texts]


def regex(completions: Sequence[str], *, pattern: str = "", most: int = 1) -> list[float]:
    """Matches of a regular expression, saturating: min(matches, most) / most, in [0, 1].

    By default 1 if the pattern occurs anywhere and 0 if not. Python's `re` syntax: `(?i)` at the front
    ignores case, `^` and `$` are the ends of the completion. Raises ValueError for an empty or invalid
    pattern or if most < 1.
    """
    if not pattern:
        raise ValueError("pattern must be a regular expression, got an empty one")
    if most < 1:
        raise ValueError(f"most must be at least 1 match, got {most}")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return [min(sum(1 for _ in compiled.finditer(text)), most) / most for text in completions]


def repetition(completions: Sequence[str], *, n: int = 3) -> list[float]:
    """Minus the share of repeated word n-grams: distinct / total - 1, in (-1, 0]; 0 = nothing repeated.

    A completion of fewer than n words scores 0. Upper and lower case alike. Raises ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 word, got {n}")
    scores = []
    for text in completions:
        words = _words(text)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        scores.append(len(set(grams)) / len(grams) - 1 if grams else 0.0)
    return scores


def problem(
    completions: Sequence[str],
    exact_problem: Sequence[str],
    exact_prompt: Sequence[int],
    *,
    place: Literal["end", "tokens"] = "end",
) -> list[float] | list[list[float]]:
    """The score of a problem of the exact lab, whose prompts say which problem it is: any number.

    `place` = tokens gives each token what it adds to the score, so that a token is told its own part; their sum is
    the score at the end, and so is the optimum the same.
    """
    found, parts = problems(), []
    for text, name, prompt in zip(completions, exact_problem, exact_prompt, strict=True):
        response = found[name].response(text)
        sums = [0.0, *(found[name].reward(prompt, response[: t + 1]) for t in range(len(response)))]
        parts.append([after - before for before, after in pairwise(sums)])
    return parts if place == "tokens" else [math.fsum(part) for part in parts]


@hookimpl
def register_reward_models() -> Mapping[str, Any]:
    return {
        "sentiment": sentiment,
        "length": length,
        "keywords": keywords,
        "regex": regex,
        "repetition": repetition,
        "problem": problem,
    }


@cache
def _lexicon() -> dict[str, int]:
    """Word -> +1 or -1: the sections [positive] and [negative] of the file; # begins a comment line."""
    signs = {"[positive]": 1, "[negative]": -1}
    lexicon: dict[str, int] = {}
    sign = 0
    text = resources.files("minirlhf.builtin").joinpath("sentiment_words.txt").read_text("utf-8")
    for line in text.splitlines():
        if line in signs:
            sign = signs[line]
        elif not line.startswith("#"):
            lexicon.update(dict.fromkeys(line.split(), sign))
    return lexicon


def _surplus(text: str) -> int:
    """Positive minus negative words of a text, each turned over by an odd number of negators in reach."""
    lexicon = _lexicon()
    tokens = _TOKEN.findall(text.lower().replace("’", "'"))
    surplus = 0
    negators: list[int] = []  # where they stand, in this clause
    for place, token in enumerate(tokens):
        if token in _CLAUSE_ENDS:
            negators = []
        elif token in _NEGATORS or token.endswith("n't"):
            if tokens[place + 1 : place + 2] not in (["only"], ["just"]):
                negators.append(place)
        elif sign := lexicon.get(token):
            in_reach = sum(place - negator <= _NEGATION_REACH for negator in negators)
            surplus += -sign if in_reach % 2 else sign
    return surplus


def _words(text: str) -> list[str]:
    spaced = _UNSPACED_CHARACTER.sub(r" \1 ", text.casefold())
    return [word for chunk in spaced.split() if (word := chunk.strip(_PUNCTUATION))]


def _whole_word(word: str) -> re.Pattern[str]:
    """The word with no letter or digit on either side, except where its script has no spaces."""
    before = "" if _UNSPACED_CHARACTER.match(word[0]) else r"(?<!\w)"
    after = "" if _UNSPACED_CHARACTER.match(word[-1]) else r"(?!\w)"
    return re.compile(before + re.escape(word) + after)
