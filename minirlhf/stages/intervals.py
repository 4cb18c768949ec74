"""95 % intervals of a mean by Student's t, and how many values it takes to tell a mean from 0.

The values are few seeds or many prompts. A percentile bootstrap is too narrow for few of them: where it says 95 % it
covers 50, 75, 84 and 90 % at 2, 3, 5 and 10 normal values.

Not here: the interval of a share (`wilson` in reward_report.py).
"""

import math
from bisect import bisect_left
from functools import cache

from torch import Tensor

COVERED = 0.95
MANY = 10_000  # degrees of freedom beyond which the quantile no longer changes in the fourth digit
MOST_NEEDED = 1000  # values; a mean that needs more of them is as good as 0


@cache
def t_quantile(freedom: int) -> float:
    """Number t with P(|T| <= t) = 0.95 for Student's T: 12.706 for 1 degree of freedom, 4.303 for 2, 1.960 for many.

    Found by halving the angle of `t_probability`, which rises in it.
    """
    low, high, freedom = 0.0, math.pi / 2, min(freedom, MANY)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < COVERED else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def t_probability(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)) of Student's T, 0 <= angle <= pi/2, as a finite sum.

    With s, c = sine and cosine of the angle: s (1 + 1/2 c^2 + 1/2 3/4 c^4 + ... up to c^(freedom - 2)) for an even
    number, 2/pi (angle + s (c + 2/3 c^3 + 2/3 4/5 c^5 + ...)) for an odd one. Source: Abramowitz and Stegun, 26.7.3-4.
    """
    cosine, odd = math.cos(angle), freedom % 2
    term, total = cosine**odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


def half_width(values: Tensor) -> Tensor:
    """Half of the interval of a mean, t std / sqrt(n), unbiased std: (..., n) -> (...), n at least 2."""
    n = values.shape[-1]
    return t_quantile(n - 1) / math.sqrt(n) * values.std(dim=-1)


def t_interval(values: Tensor) -> list[float] | None:
    """95 % interval [low, high] of the mean of values (n,); None for fewer than two, which say nothing of their error.

    Exact for independent normal values. Its cover of skewed ones is simulated in tests/stages/test_intervals.py.
    """
    if len(values) < 2:
        return None
    mean, half = values.mean().item(), half_width(values).item()
    return [mean - half, mean + half]


def count_that_tells(mean: float, std: float) -> int | None:
    """Smallest n whose interval, t std / sqrt(n), is narrower than the mean, so that 0 lies outside of it.

    mean, std: of the values at hand, taken to stay as they are. None if 0 or more than MOST_NEEDED would be needed.
    """
    counts = range(2, MOST_NEEDED + 1)
    index = bisect_left(counts, True, key=lambda n: t_quantile(n - 1) * std / math.sqrt(n) < abs(mean))
    return counts[index] if index < len(counts) else None
