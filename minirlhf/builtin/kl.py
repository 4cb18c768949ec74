"""KL estimators: distance of the policy from the reference, nats a token (N12, N19).

d = log pi - log ref on the token taken. Each returns (B,R), differentiable; the loop masks and sums. In the reward, in
the loss or in both they optimise different things: rl/doubts.py says which, `minirlhf audit kl` measures it.
Source of k1, k2, k3: J. Schulman, joschu.net/blog/kl-approx.html.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minirlhf import hookimpl
from minirlhf.tensors import LOG_CLAMP, importance_ratio


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d: unbiased, large variance, may be negative. In the reward: the exact gradient of the sequence KL."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d^2 / 2: biased, never negative; its gradient in the loss is that of the KL at this token."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased, never negative, less variance than k1 near 0 (GRPO's term).

    Computed as expm1(-d) + d: the naive form goes below 0 in float32 near d = 0. Only the argument of the exp is
    clamped (+-20); clamping d itself would remove the gradient where it is needed most.
    """
    d = logprobs - ref_logprobs
    return (-d).clamp(-LOG_CLAMP, LOG_CLAMP).expm1() + d


def ratio_k3(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """pi / pi_old k3: the value of k3 on-policy, in the loss the gradient of k2 (2512.21852).

    The ratio is 1 in the first update but carries a gradient: grad(rho k3) = k3 grad log pi + grad k3 = d grad log pi.
    """
    return importance_ratio(logprobs, old_logprobs) * k3(logprobs, ref_logprobs)


def abs(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """|d|: a distance on the token taken, not an estimate of KL (TRL's and verl's `abs`)."""
    return (logprobs - ref_logprobs).abs()


def exact(log_dist: Tensor, ref_log_dist: Tensor) -> Tensor:
    """sum_v p(v) (log p(v) - log ref(v)): the whole distribution (B,R,V) instead of one sample; never negative.

    Also called full, or Rao-Blackwellised (2504.10637). A token banned in both distributions (log p = log ref =
    -inf) contributes 0; one that the reference bans and the policy does not is infinitely far, and gives inf.
    """
    banned = log_dist.isneginf()
    p = log_dist.exp()
    d = log_dist.masked_fill(banned, 0.0) - ref_log_dist.masked_fill(banned, 0.0)
    return torch.where(banned, torch.zeros_like(p), p * d).sum(dim=-1)


@hookimpl
def register_kl_estimators() -> Mapping[str, Any]:
    return {"k1": k1, "k2": k2, "k3": k3, "ratio_k3": ratio_k3, "abs": abs, "exact": exact}
