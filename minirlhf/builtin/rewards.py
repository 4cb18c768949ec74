"""Built-in rewards: scores of the completions' texts, one number each, computed in plain Python.

Here are the rewards that a first experiment needs (`sentiment`, `length`, `keywords`, `regex`, `repetition`) and
`problem`, the score of the exact lab. Deliberately not here: anything that loads a model (trained.py). Each reward is
graded where it can be, since a score of only two values teaches slowly, and none divides by the length, which would
pay for stopping early.

A *word* is the text between two spaces, without the punctuation around it; in scripts written without spaces (Chinese,
Japanese, Thai, ...) it is one character. A completion does not contain its prompt.
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

# Scripts without spaces: Thai and Lao, Burmese, Khmer; kana; Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_UNSPACED_CHARACTER = re.compile(f"([{_UNSPACED}])")
_PUNCTUATION = string.punctuation + "«»‘’“”„‹›–—…·•¡¿、。〈〉《》「」『』【】・！（），．：；？～"

# Of the sentiment reward: words with inner apostrophes and hyphens, or a single punctuation mark.
_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]")
_NEGATORS = {"not", "no", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "cannot"}
_NEGATORS |= {"without", "hardly", "barely", "scarcely", "rarely", "seldom"}
_CLAUSE_ENDS = set('.,;:!?()[]"…—–') | {"but", "however", "though", "although", "yet"}
_NEGATION_REACH = 3  # words behind a negator that it can turn over


def sentiment(completions: Sequence[str], *, scale: float = 5.0) -> list[float]:
    """Positive minus negative words, negation considered: tanh((positive - negative) / scale), in (-1, 1).

    The words are those of `sentiment_words.txt` (English; a text without any of them scores 0). A word counts for the
    other side if one of the three words before it, in the same clause, is a negator (not, never, no, n't, hardly,
    without, nothing, ...); two negators cancel; "not only" and "not just" do not negate. A clause ends at punctuation
    and at but, however, though, although, yet. The surplus is never divided by the number of words: that would reward
    stopping early.

    `scale` in words: a surplus of `scale` words scores tanh(1) = 0.76. Raises ValueError unless it is positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return [math.tanh(_surplus(text) / scale) for text in completions]


def length(completions: Sequence[str], *, target: int = 40) -> list[float]:
    """Closeness of the number of words n to the target: min(n, target) / max(n, target), in [0, 1].

    1 at the target, 0.5 for half of it and for twice of it, 0 for an empty completion. `target` in words
    (characters in scripts without spaces). Raises ValueError if the target is below 1.
    """
    if target < 1:
        raise ValueError(f"target must be at least 1 word, got {target}")
    counts = [len(words_of(text)) for text in completions]
    return [min(n, target) / max(n, target) for n in counts]


def keywords(completions: Sequence[str], *, words: list[str] = []) -> list[float]:  # noqa: B006 - never changed
    """Share of the given words that occur in the completion, in [0, 1]: repeating one does not pay.

    Whole words; upper and lower case count as the same; an entry may be a phrase. In scripts without spaces an entry
    matches anywhere. Raises ValueError if `words` is empty or holds an empty entry.
    """
    wanted = {" ".join(word.casefold().split()) for word in words}
    if not wanted or "" in wanted:
        raise ValueError('words must name at least one word and no empty one, for example ["lens", "zoom"]')
    patterns = [_whole_word(word) for word in wanted]
    texts = [" ".join(text.casefold().split()) for text in completions]
    return [sum(bool(pattern.search(text)) for pattern in patterns) / len(patterns) for text in texts]


def regex(completions: Sequence[str], *, pattern: str = "", most: int = 1) -> list[float]:
    """Number of matches of a regular expression, up to `most`: min(matches, most) / most, in [0, 1].

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

    A completion of fewer than n words scores 0. Upper and lower case count as the same. Raises ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 word, got {n}")
    scores = []
    for text in completions:
        words = words_of(text)
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
    """Score of a problem of the exact lab; the columns of a prompt's row name the problem and its prompt. Any number.

    `place` = end gives one score; tokens gives each token the amount that it adds to the score. Their sum is the score
    at the end, so both have the same optimum.
    """
    known, parts = problems(), []
    for text, name, prompt in zip(completions, exact_problem, exact_prompt, strict=True):
        response = known[name].response(text)
        # The scores of the prefixes: a token adds the difference between the two around it.
        sums = [0.0, *(known[name].reward(prompt, response[: t + 1]) for t in range(len(response)))]
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
    """Map a word to +1 or -1, from the sections [positive] and [negative] of the file; # begins a comment."""
    signs = {"[positive]": 1, "[negative]": -1}
    lexicon: dict[str, int] = {}
    sign = 0
    text = resources.files("minirlhf.builtin").joinpath("sentiment_words.txt").read_text("utf-8")
    for line in text.split("\n"):
        if line in signs:
            sign = signs[line]
        elif not line.startswith("#"):
            lexicon.update(dict.fromkeys(line.split(), sign))
    return lexicon


def _surplus(text: str) -> int:
    """Positive minus negative words of a text; an odd number of negators in reach turns a word over."""
    lexicon = _lexicon()
    tokens = _TOKEN.findall(text.lower().replace("’", "'"))
    surplus = 0
    negators: list[int] = []  # their indices in `tokens`, in this clause
    for i, token in enumerate(tokens):
        if token in _CLAUSE_ENDS:
            negators = []
        elif token in _NEGATORS or token.endswith("n't"):
            if tokens[i + 1 : i + 2] not in (["only"], ["just"]):
                negators.append(i)
        elif sign := lexicon.get(token):
            in_reach = sum(i - negator <= _NEGATION_REACH for negator in negators)
            surplus += -sign if in_reach % 2 else sign
    return surplus


def words_of(text: str) -> list[str]:
    """Split a text into words (see the module) in lower case."""
    spaced = _UNSPACED_CHARACTER.sub(r" \1 ", text.casefold())
    return [word for chunk in spaced.split() if (word := chunk.strip(_PUNCTUATION))]


def _whole_word(word: str) -> re.Pattern[str]:
    """Pattern of a word with no letter or digit on either side; in scripts without spaces anything may be there."""
    before = "" if _UNSPACED_CHARACTER.match(word[0]) else r"(?<!\w)"
    after = "" if _UNSPACED_CHARACTER.match(word[-1]) else r"(?!\w)"
    return re.compile(before + re.escape(word) + after)
