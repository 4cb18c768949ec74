"""Masked arithmetic on (B,R) tensors: sums, means, moments, whitening, log-probabilities of taken tokens.

Junk under a False mask, NaN included, never reaches a result: it is replaced (`where`) before the arithmetic and
not multiplied by zero, because NaN * 0 is NaN. Every statistic of a batch comes out of `moments`, as sum, sum of
squares and count: the one place where a run on several devices would add them up.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_CLAMP = 20.0  # the argument of an exp is clamped to +-20 (e^20 = 4.9e8): large, finite, and countable
Whitening = Literal["batch", "population", "scale", "none"]


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over the True positions of mask; x and mask (...,) of one shape."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True positions of mask; 0 when there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class Moments:
    """Sum, sum of squares and count of some numbers, in float64."""

    total: float
    squares: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def variance(self, *, unbiased: bool = True) -> float:
        """Sample variance (n - 1), or population variance (n); 0 below two numbers."""
        if self.count < 2:
            return 0.0
        centred = max(self.squares - self.total * self.total / self.count, 0.0)
        return centred / (self.count - 1 if unbiased else self.count)

    def std(self, *, unbiased: bool = True) -> float:
        return math.sqrt(self.variance(unbiased=unbiased))


def moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of x (...,) over the True positions of mask (...,): one device synchronisation."""
    kept = torch.where(mask, x.detach(), torch.zeros_like(x)).double()
    total, squares, count = torch.stack([kept.sum(), (kept * kept).sum(), mask.sum().double()]).tolist()
    return Moments(total, squares, int(count))


def whiten(x: Tensor, mask: Tensor, variant: Whitening) -> tuple[Tensor, float, bool]:
    """Advantages at mean 0 and variance 1 over the mask of the whole batch.

    `batch` (x - mean) / std with the unbiased std; `population` the same with the biased std; `scale` x / std, the
    mean kept; `none` x itself. Returns (whitened (B,R), the scale that x was divided by, degenerate). The loop
    divides the coefficient of a KL loss by the same scale, or beta would mean something else at every reward scale.
    Degenerate (fewer than two tokens, or a std below 1e-6 of the largest |x|: rounding noise): zeros and scale 1.
    """
    if variant == "none":
        return torch.where(mask, x, torch.zeros_like(x)), 1.0, False
    stats = moments(x, mask)
    std = stats.std(unbiased=variant != "population")
    largest = float(torch.where(mask, x.detach().abs(), torch.zeros_like(x)).max()) if x.numel() else 0.0
    if stats.count < 2 or std <= 1e-6 * largest:
        return torch.zeros_like(x), 1.0, True
    centre = 0.0 if variant == "scale" else stats.mean
    return torch.where(mask, (x - centre) / std, torch.zeros_like(x)), std, False


def gather_logprobs(log_dist: Tensor, ids: Tensor) -> Tensor:
    """log pi(token taken): log_dist (...,V), ids (...) -> (...), nats."""
    return log_dist.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Importance ratio rho = pi / pi_old of the tokens taken, the log clamped to +-20 so that it stays finite."""
    return (logprobs - old_logprobs).clamp(-LOG_CLAMP, LOG_CLAMP).exp()


def last_index(mask: Tensor) -> Tensor:
    """Index of the last True of each row of mask (B,R) -> (B,); -1 for a row without any."""
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    if mask.shape[1] == 0:
        return mask.new_full((mask.shape[0],), -1, dtype=torch.long)
    return (mask * steps).amax(dim=1) - 1
