"""The token log read again: checked, since anybody may have written the file, with what follows from its numbers.

Quantities have an entry a token. Those that the update used are the rollout's (advantage, reward, value, old log-prob,
the KL of the run); the others are of the policy after it.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from minirlhf.builtin import kl
from minirlhf.rl.token_log import LIKELIEST, rounded
from minirlhf.store.jsonl import each_row
from minirlhf.tensors import ratio

# key -> what it is called, and what it is: nats unless it says otherwise.
QUANTITIES = {
    "advantage": ("advantage", "how much better than expected, after whitening; what the policy loss is weighted by"),
    "reward": ("reward", "the KL penalty of every token, and the score at the last one"),
    "value": ("value", "what V expected the return to be before this token"),
    "kl": ("KL in the run", "what the run's estimator gave when the response was sampled"),
    "old_logprob": ("log pi when sampled", "log-prob of the policy that wrote the response"),
    "logprob": ("log pi", "log-prob of the policy after the update"),
    "ref_logprob": ("log ref", "log-prob of the reference"),
    "ratio": ("ratio", "pi / pi when sampled: how much more likely the update made the token; no unit"),
    "k1": ("k1", "log pi - log ref: unbiased on average over tokens that the policy itself samples"),
    "k2": ("k2", "k1 squared over 2"),
    "k3": ("k3", "ref / pi - 1 + k1: never negative"),
    "abs": ("abs", "k1 without its sign"),
    "exact": ("exact", "KL of the two whole distributions at this token"),
}
COLUMNS = ("old_logprob", "logprob", "ref_logprob", "kl", "value", "reward", "advantage", "exact")


def read_token_log(path: Path, steps: Container[int] | None = None) -> list[dict[str, Any]]:
    """The rows of a token log (of these steps) in the order of the file, each with every quantity; what is no such row
    is left out."""
    chosen = (row for row in each_row(path) if sound(row) and (steps is None or row["step"] in steps))
    return [{**row, **derived(row)} for row in chosen]


def logged_tokens(path: Path) -> dict[int, int]:
    """How many tokens each logged step has, by step."""
    found: dict[int, int] = {}
    for row in each_row(path):
        if sound(row):
            found[row["step"]] = found.get(row["step"], 0) + len(row["tokens"])
    return dict(sorted(found.items()))


def sound(row: dict[str, Any]) -> bool:
    """Every list has a plain entry for each token."""
    tokens, likeliest, clipped = row.get("tokens"), row.get("likeliest"), row.get("clipped")
    if not isinstance(tokens, list) or not tokens or not is_list(tokens, str) or not isinstance(row.get("prompt"), str):
        return False
    size = len(tokens)
    if not is_whole(row.get("step")) or not is_number(row.get("score")):
        return False
    if not all(is_list(row.get(name), float, size) for name in COLUMNS):
        return False
    if isinstance(clipped, list) and not is_list(clipped, bool, size):
        return False
    if not isinstance(likeliest, list) or not is_list(likeliest, list, size):
        return False
    return all(len(some) <= LIKELIEST and all(map(is_choice, some)) for some in likeliest)


def is_whole(value: Any) -> bool:
    """An int that is no bool, of a size that a page can show."""
    return type(value) is int and 0 <= value < 1 << 53


def is_list(value: Any, kind: type, size: int | None = None) -> bool:
    """A list of this kind (float: numbers or None), of this length if one is given."""
    if not isinstance(value, list) or (size is not None and len(value) != size):
        return False
    return all(is_number(x) if kind is float else isinstance(x, kind) for x in value)


def is_number(value: Any) -> bool:
    """A number that a float can hold, or none."""
    return value is None or (type(value) in (int, float) and abs(value) < 1e300) or value != value


def is_choice(value: Any) -> bool:
    """[text, log-prob, log-prob of the reference]"""
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and is_list(value[1:], float)


def derived(row: dict[str, Any]) -> dict[str, list[float | None]]:
    """What follows from the log-probs of the tokens: the ratio and the estimators that need no distribution."""
    now, old, ref = (
        torch.tensor([float("nan") if x is None else x for x in row[name]], dtype=torch.float64)
        for name in ("logprob", "old_logprob", "ref_logprob")
    )
    found = {"ratio": ratio(now, old), **{f.__name__: f(now, ref) for f in (kl.k1, kl.k2, kl.k3, kl.abs)}}
    return {name: rounded(values) for name, values in found.items()}
