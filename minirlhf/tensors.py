"""Masked arithmetic on (B,R) tensors: sums, means, moments, whitening, log-probabilities of taken tokens.

Numbers under a False mask, NaN included, never reach a result: they are replaced (`where`) before the arithmetic and
not multiplied by zero, because NaN * 0 is NaN. Every statistic of a batch comes out of `moments`, as sum, sum of
squares and count: the one place where a run on several devices would add them up.

Not here: what the sums are used for, such as the aggregation of a loss (ppo.py) or metrics (rl/metrics.py).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-6  # numbers that differ by less than this share of their size are equal but for rounding: 8 float32 eps
LOG_CLAMP = 20.0  # the argument of an exp is clamped to +-20 (e^20 = 4.9e8): large, finite, and countable
Whitening = Literal["batch", "population", "scale", "none"]  # variants of `whiten`


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over the True positions of mask; x and mask (...,) of one shape."""
    # `where` also cuts the gradient: a masked position gets exactly 0, not NaN * 0.
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True positions of mask; 0 if there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class Moments:
    """Sum, sum of squares and count of some numbers, in float64: three numbers that add up over parts of a batch."""

    total: float
    squares: float
    count: int

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.total + other.total, self.squares + other.squares, self.count + other.count)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def variance(self, *, unbiased: bool = True) -> float:
        """Sample variance (division by n - 1), or population variance (by n); 0 if there are fewer than two numbers."""
        if self.count < 2:
            return 0.0
        # sum (x - mean)^2 = sum x^2 - (sum x)^2 / n; rounding can make the difference of two large numbers negative.
        centred = max(self.squares - self.total * self.total / self.count, 0.0)
        return centred / (self.count - 1 if unbiased else self.count)

    def std(self, *, unbiased: bool = True) -> float:
        return math.sqrt(self.variance(unbiased=unbiased))

    @property
    def varies(self) -> bool:
        """True if the numbers differ by more than the rounding of numbers of their size (root mean square)."""
        return self.count > 1 and self.std() > ROUNDING * math.sqrt(self.squares / self.count)


def widened(x: Tensor) -> Tensor:
    """x in float64; in float32 on MPS, which has no float64."""
    return x.float() if x.device.type == "mps" else x.double()


def moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of x (...,) over the True positions of mask (...,)."""
    kept = widened(torch.where(mask, x.detach(), torch.zeros_like(x)))
    # One tolist for all three: each one waits until the device has computed everything before it.
    total, squares, count = torch.stack([kept.sum(), (kept * kept).sum(), mask.sum().to(kept.dtype)]).tolist()
    return Moments(total, squares, int(count))


class Whitened(NamedTuple):
    """Whitened advantages (B,R), and the scale that they were divided by."""

    advantages: Tensor
    scale: float


def whiten(x: Tensor, mask: Tensor, variant: Whitening) -> Whitened:
    """Whiten x (B,R) over the mask of the whole batch.

    `batch` (x - mean) / std with the unbiased std; `population` the same with the biased std; `scale` x / std, the
    mean kept; `none` x itself. scale: the number that x was divided by. With fewer than two tokens, or a std below
    ROUNDING of the largest |x|, nothing but rounding noise is left: the result is 0 everywhere, and scale is 1.
    """
    # The loop divides the coefficient of a KL loss by the same scale: otherwise the balance of reward and KL, and with
    # it the meaning of beta, would change with the scale of the rewards.
    if variant == "none":
        return Whitened(torch.where(mask, x, torch.zeros_like(x)), 1.0)
    stats = moments(x, mask)
    # The mean was estimated from the same tokens, which takes away one degree of freedom: hence n - 1, as in
    # torch.std. `population` is there to reproduce projects that divide by n.
    std = stats.std(unbiased=variant != "population")
    largest = float(torch.where(mask, x.detach().abs(), torch.zeros_like(x)).max()) if x.numel() else 0.0
    if stats.count < 2 or std <= ROUNDING * largest:
        return Whitened(torch.zeros_like(x), 1.0)
    centre = 0.0 if variant == "scale" else stats.mean
    return Whitened(torch.where(mask, (x - centre) / std, torch.zeros_like(x)), std)


def gather_logprobs(log_dist: Tensor, ids: Tensor) -> Tensor:
    """log pi of the tokens taken: log_dist (...,V), ids (...) -> (...), nats."""
    return log_dist.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho = pi / pi_old of the tokens taken (N8), as exp(logprobs - old_logprobs) with the exponent clamped to +-20."""
    # Clamped before the exp: e^89 is inf in float32, and inf * 0 in a loss or its gradient is NaN.
    return (logprobs - old_logprobs).clamp(-LOG_CLAMP, LOG_CLAMP).exp()


def moved_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho log rho - (rho - 1) of the tokens taken: nats a token, never negative.

    Its mean over samples of the old policy is KL(pi, pi_old): E_old[rho log rho] = KL, and E_old[rho - 1] = 0.
    """
    log_rho = logprobs - old_logprobs
    return importance_ratio(logprobs, old_logprobs) * log_rho - log_rho.clamp(-LOG_CLAMP, LOG_CLAMP).expm1()


def last_index(mask: Tensor) -> Tensor:
    """Index of the last True of each row: mask (B,R) -> (B,); -1 for a row without any."""
    # 1, 2, ... so that False (0) is smaller than the first position; amax has no answer for R = 0.
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    if mask.shape[1] == 0:
        return mask.new_full((mask.shape[0],), -1, dtype=torch.long)
    return (mask * steps).amax(dim=1) - 1
