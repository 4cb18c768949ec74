"""Policy losses (N2, N9 to N11): a loss for each token (B,R); the loop aggregates them over the mask.

rho = pi_new / pi_old of the token taken, its log clamped to +-20. In the first update of a rollout rho = 1, and all
of them have one gradient: -A grad log pi. They differ in what happens as the policy moves on.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minirlhf import hookimpl
from minirlhf.tensors import importance_ratio, moved_kl


def pg(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi (N2): the policy gradient itself; right for the policy that sampled, and for no other."""
    return -advantages * logprobs


def ratio(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A rho (N9): the surrogate of the notes; nothing holds the new policy near the old one."""
    return -advantages * importance_ratio(logprobs, old_logprobs)


def ppo_penalty(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-A rho + beta (rho log rho - (rho - 1)) (N10; 1707.06347, section 4).

    The second term is never negative, and its mean over samples of the old policy is KL(pi, pi_old): nats a token,
    logged as `penalty_kl`. beta is the loop's: `loss.penalty`, fixed, or steered to `loss.penalty_target`.
    """
    kl = moved_kl(logprobs, old_logprobs)
    return -advantages * importance_ratio(logprobs, old_logprobs) + beta * kl, {"penalty_kl": kl}


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip: float = 0.2,
    clip_low: float | None = None,
    clip_high: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(A rho, A clip(rho, 1 - clip, 1 + clip)) (N11; 1707.06347).

    clip_low and clip_high set the two sides apart (DAPO, 2503.14476). Logged: `clipfrac`, tokens where the clip is
    active (the gradient is 0 there), and `outside`, tokens merely outside the range.
    """
    rho = importance_ratio(logprobs, old_logprobs)
    low = 1.0 - (clip if clip_low is None else clip_low)
    high = 1.0 + (clip if clip_high is None else clip_high)
    plain, clipped = advantages * rho, advantages * rho.clamp(low, high)
    outside = (rho < low) | (rho > high)
    metrics = {"clipfrac": (clipped < plain).to(rho.dtype), "outside": outside.to(rho.dtype)}
    return -torch.minimum(plain, clipped), metrics


@hookimpl
def register_policy_losses() -> Mapping[str, Any]:
    return {"pg": pg, "ratio": ratio, "ppo_penalty": ppo_penalty, "ppo_clip": ppo_clip}
