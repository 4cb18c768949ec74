"""Result of one check of a plugin. The checks themselves are in reward.py, estimator.py and observer.py."""

from dataclasses import dataclass

SAME = 1e-5  # two results that differ by at most this are one: relative for scores, absolute for tensors


@dataclass(frozen=True)
class Finding:
    """Result of one check: its name, True if it holds, what was seen, and a remedy ("" where `found` says enough)."""

    name: str
    holds: bool
    found: str = ""
    todo: str = ""
