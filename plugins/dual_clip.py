"""A policy loss: PPO-Clip with a floor under what one bad token can cost (1912.09729).

    minirlhf run --plugin plugins/dual_clip.py --loss dual_clip --set loss.floor=3.0

For A < 0 the clipped surrogate A rho falls without bound as rho grows; here it stops at `floor` times A. A loss may
return metrics as well: they are averaged over the tokens and logged as policy/NAME_avg.
"""

import torch

from minirlhf import hookimpl
from minirlhf.tensors import importance_ratio


def dual_clip(logprobs, old_logprobs, advantages, *, clip: float = 0.2, floor: float = 3.0):
    """-min(A rho, A clip(rho, 1 - clip, 1 + clip)), and for A < 0 at most -floor A: (B,R)."""
    rho = importance_ratio(logprobs, old_logprobs)
    surrogate = torch.minimum(advantages * rho, advantages * rho.clamp(1 - clip, 1 + clip))
    floored = torch.maximum(surrogate, floor * advantages)
    held = (advantages < 0) & (floored > surrogate)
    return -torch.where(advantages < 0, floored, surrogate), {"floored": held.to(rho.dtype)}


@hookimpl
def register_policy_losses():
    return {"dual_clip": dual_clip}
