"""The hidden true score of the corpus `reviews`: what its comparisons were judged by, and what no run is rewarded for.

    2 tanh(surplus of good words / 3) + 2 aspects named / 3, at most 2
    + 4 repetition + nearness of the length to 30 words

It wants a review that is friendly, specific, varied and of the right length, all at once: a reward model that has
learned one of these too well can be led away from the others, and the evaluation shows it. Read by evaluations and by
the generator of the comparisons, never by a reward.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from minirlhf.builtin.rewards import length, repetition, sentiment

TRUE_SCORE_CORPUS = "reviews"  # the packaged corpus that it is the score of
WORDS = 30
ASPECTS = 3


def true_scores(completions: Sequence[str]) -> list[float]:
    """A score for each completion: about -4 to 5."""
    texts = list(completions)
    named = [min(len(aspects(text)), ASPECTS) / ASPECTS for text in texts]
    parts = zip(sentiment(texts, scale=3.0), named, repetition(texts), length(texts, target=WORDS), strict=True)
    return [2 * good + 2 * some + 4 * again + near for good, some, again, near in parts]


def aspects(text: str) -> set[str]:
    """The different aspects that a text names: the nouns of `aspect_words.txt`."""
    return set(re.findall(r"[a-z]+", text.lower())) & _nouns()


@cache
def _nouns() -> frozenset[str]:
    text = resources.files("minirlhf.builtin").joinpath("aspect_words.txt").read_text("utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
