"""The token log as the data of a page: the steps that fit, in a compact form.

Not here: reading and checking the log, and what its quantities mean (tokens.py).
"""

import math
from typing import Any

from minirlhf.report.run_files import is_finite, six_digits
from minirlhf.report.tokens import COLUMNS, DERIVED

TOKENS = 4_500  # tokens shown at most: about 0.9 MB of page


def kept_steps(logged: dict[int, int]) -> set[int]:
    """Steps to show so that about TOKENS tokens remain: evenly spread, first and last included.

    logged: number of tokens of each logged step.
    """
    steps, total = list(logged), sum(logged.values())
    room = max(2, math.floor(len(steps) * TOKENS / total)) if total > TOKENS else len(steps)
    if room >= len(steps):
        return set(steps)
    return {steps[round(i * (len(steps) - 1) / (room - 1))] for i in range(room)}


def packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Token log in compact form: each distinct text once in `texts`, tokens and alternatives as indices into it."""
    table: dict[str, int] = {}

    def numbered(text: str) -> int:
        return table.setdefault(text, len(table))

    compact = [
        {
            "step": row["step"], "prompt": row["prompt"],
            "score": six_digits(row["score"]), "ended": row.get("terminated") is True,
            "tokens": [numbered(text) for text in row["tokens"]],
            **{name: [six_digits(x) for x in row[name]] for name in COLUMNS},
            **{name: [three_digits(x) for x in row[name]] for name in DERIVED},
            "clipped": [i for i, x in enumerate(row["clipped"]) if x] if isinstance(row["clipped"], list) else None,
            "likeliest": [
                [[numbered(text), three_digits(policy), three_digits(ref)] for text, policy, ref in choices]
                for choices in row["likeliest"]
            ],
        }
        for row in rows
    ]  # fmt: skip
    return {"texts": list(table), "rows": compact}


def three_digits(value: float | None) -> float | None:
    """Number rounded to three significant digits, enough to look at; None if it is not finite."""
    return float(f"{value:.3g}") if is_finite(value) else None
