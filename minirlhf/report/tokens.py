"""The token log of a run, read and checked, with the quantities that follow from its log-probs.

Every quantity has one value a token. Advantage, reward, value, old log-prob and the run's KL are those of the rollout,
which the update used; the others are of the policy after the update. Not here: writing the log (rl/token_log.py).
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from minirlhf.builtin import kl
from minirlhf.rl.token_log import LIKELIEST, rounded
from minirlhf.store.jsonl import each_row
from minirlhf.tensors import importance_ratio

# Key -> (label, meaning); the unit is nats unless the meaning says otherwise.
QUANTITIES = {
    "advantage": ("advantage", "how much better than expected, after whitening; what the policy loss is weighted by"),
    "reward": ("reward", "the KL penalty of every token, and the score at the last one"),
    "value": ("value", "what V expected the return to be before this token"),
    "kl": ("KL in the run", "what the run's estimator gave when the response was sampled"),
    "old_prob": ("p when sampled", "probability by the policy that wrote the response; no unit"),
    "old_logprob": ("log p when sampled", "its logarithm"),
    "prob": ("p", "probability of this token by the policy after the update; no unit"),
    "logprob": ("log p", "its logarithm"),
    "ref_prob": ("p ref", "probability of this token by the reference; no unit"),
    "ref_logprob": ("log p ref", "its logarithm"),
    "ratio": ("ratio", "p / p when sampled: how much more likely the update made the token; no unit"),
    "k1": ("k1", "log p - log p ref: unbiased on average over tokens that the policy itself samples"),
    "k2": ("k2", "k1 squared over 2"),
    "k3": ("k3", "p ref / p - 1 + k1: never negative"),
    "abs": ("abs", "k1 without its sign"),
    "exact": ("exact", "KL of the two whole distributions at this token"),
}
# Names that the notes give to some of them (N18); their all_probs is the distribution whose largest entries are logged.
IN_NOTES = {"prob": "probs", "ref_prob": "probs", "value": "all_values"}
# Stored in the log; the other quantities are derived from them.
COLUMNS = ("old_logprob", "logprob", "ref_logprob", "kl", "value", "reward", "advantage", "exact")
DERIVED = tuple(key for key in QUANTITIES if key not in COLUMNS)


def read_token_log(path: Path, steps: Container[int] | None = None) -> list[dict[str, Any]]:
    """Rows of a token log in the order of the file, with every quantity; unsound rows are left out.

    steps: only rows of these, or None for all.
    """
    rows = (row for row in each_row(path) if sound(row) and (steps is None or row["step"] in steps))
    return [{**row, **derived(row)} for row in rows]


def logged_tokens(path: Path) -> dict[int, int]:
    """Number of logged tokens of each step, sorted by step; `read_token_log` checks the rest of a row."""
    counts: dict[int, int] = {}
    for row in each_row(path):
        tokens = row.get("tokens")
        if is_whole(row.get("step")) and isinstance(tokens, list):
            counts[row["step"]] = counts.get(row["step"], 0) + len(tokens)
    return dict(sorted(counts.items()))


def sound(row: dict[str, Any]) -> bool:
    """True if a row has all fields of the token log, each of its lists with one valid entry a token."""
    tokens, likeliest, clipped = row.get("tokens"), row.get("likeliest"), row.get("clipped")
    if not isinstance(tokens, list) or not tokens or not is_list(tokens, str) or not isinstance(row.get("prompt"), str):
        return False
    size = len(tokens)
    if not is_whole(row.get("step")) or not is_number(row.get("score", "")) or "clipped" not in row:
        return False
    if not all(is_list(row.get(name), float, size) for name in COLUMNS):
        return False
    if isinstance(clipped, list) and not is_list(clipped, bool, size):
        return False
    if not isinstance(likeliest, list) or not is_list(likeliest, list, size):
        return False
    return all(len(choices) <= LIKELIEST and all(map(is_choice, choices)) for choices in likeliest)


def is_whole(value: Any) -> bool:
    """True for an int (no bool) from 0 to 2^53 - 1, which JavaScript can represent."""
    return type(value) is int and 0 <= value < 1 << 53


def is_list(value: Any, kind: type, size: int | None = None) -> bool:
    """True for a list of this kind (float: numbers or None), of this length if one is given."""
    if not isinstance(value, list) or (size is not None and len(value) != size):
        return False
    return all(map(is_number, value) if kind is float else (isinstance(x, kind) for x in value))


def is_number(value: Any) -> bool:
    """True for None, NaN, and numbers that a float can hold."""
    return value is None or (type(value) in (int, float) and abs(value) < 1e300) or value != value


def is_choice(value: Any) -> bool:
    """True for an alternative: [text, log-prob, log-prob of the reference]."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    text, policy, reference = value
    return isinstance(text, str) and is_number(policy) and is_number(reference)


def derived(row: dict[str, Any]) -> dict[str, list[float | None]]:
    """DERIVED quantities of a row, from its log-probs: probabilities, ratio, KL estimators without a distribution."""
    now, old, ref = (
        torch.tensor([float("nan") if x is None else x for x in row[name]], dtype=torch.float64)
        for name in ("logprob", "old_logprob", "ref_logprob")
    )
    by_name = {"old_prob": old.exp(), "prob": now.exp(), "ref_prob": ref.exp(), "ratio": importance_ratio(now, old)}
    by_name |= {f.__name__: f(now, ref) for f in (kl.k1, kl.k2, kl.k3, kl.abs)}
    return {name: rounded(values) for name, values in by_name.items()}
