"""Hidden true score of the corpus `reviews`: its comparisons were judged by it, and no run is rewarded for all of it.

    2 tanh(surplus of good words / 3) + 2 aspects named / 3, at most 2
    + 4 repetition + nearness of the length to 30 words

It is high for a review that is friendly, specific, varied and of the right length, all at once. A policy that exploits
a reward model which overrates one of these loses the others, and the evaluation shows it. Evaluations and the generator
of the comparisons use it; it is deliberately not registered as a reward. Three of its parts are: a run rewarded for
`sentiment` gains that part by definition, so the evaluation shows the parts, and the gain without the rewarded ones.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from minirlhf import PROJECT
from minirlhf.builtin.rewards import length, repetition, sentiment
from minirlhf.config.schema import RewardConfig

TRUE_SCORE_CORPUS = "reviews"  # packaged corpus that the score is for
WORDS = 30
ASPECTS = 3
SHARED_PARTS = ("sentiment", "repetition", "length")  # parts that are built-in rewards, by the same names


def true_scores(completions: Sequence[str]) -> list[float]:
    """True score of each completion, about -4 to 5."""
    return [sum(values) for values in zip(*true_score_parts(completions).values(), strict=True)]


def true_score_parts(completions: Sequence[str]) -> dict[str, list[float]]:
    """Parts of the true score, which add up to it: name -> a number a completion."""
    texts = list(completions)
    return {
        "sentiment": [2 * x for x in sentiment(texts, scale=3.0)],
        "aspects": [2 * (min(len(aspects(text)), ASPECTS) / ASPECTS) for text in texts],
        "repetition": [4 * x for x in repetition(texts)],
        "length": length(texts, target=WORDS),
    }


def rewarded_parts(rewards: Mapping[str, RewardConfig]) -> list[str]:
    """Parts of the true score that are built-in rewards of the run as well, so that their gain is the reward's own.

    A reward of negative weight, or for another length, is not the same.
    """
    paid = {
        part
        for reward in rewards.values()
        if (part := reward.use.removeprefix(f"{PROJECT}:")) and reward.weight > 0
        if part != "length" or reward.options.get("target") == WORDS
    }
    return [part for part in SHARED_PARTS if part in paid]


def seen_by(rewards: Mapping[str, RewardConfig], preferences: str | None) -> str:
    """Sentence on how far the rewards of the run saw the true score.

    A reward model that was trained from `preferences` learned from comparisons which the true score judged, if they are
    the packaged ones. What a reward of the user's own or of a plugin counts is not known here.
    """
    parts = rewarded_parts(rewards)
    uses = {label: r.use.removeprefix(f"{PROJECT}:") for label, r in rewards.items() if r.weight}
    said = [f"{' and '.join(parts)} {'is' if len(parts) == 1 else 'are'} rewarded in this run, too"] if parts else []
    if "trained" in uses.values():
        sure = "learned" if preferences == TRUE_SCORE_CORPUS else "may have learned"
        said.append(f"the reward model {sure} from comparisons that the true score judged, with noise")
    if other := [label for label, use in uses.items() if use not in (*parts, "trained")]:
        said.append(f"how much of it the reward {' or '.join(other)} counts is not known")
    return "; ".join(said) or "no reward of this run computes any of it"


def aspects(text: str) -> set[str]:
    """Distinct aspects that a text names: nouns of `aspect_words.txt`."""
    return set(re.findall(r"[a-z]+", text.lower())) & _nouns()


@cache
def _nouns() -> frozenset[str]:
    text = resources.files("minirlhf.builtin").joinpath("aspect_words.txt").read_text("utf-8")
    return frozenset(word for line in text.split("\n") if not line.startswith("#") for word in line.split())
