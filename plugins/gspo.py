"""A policy loss with one ratio a response instead of one a token (GSPO, 2507.18071).

    minirlhf run --plugin plugins/gspo.py --loss gspo --advantage rloo --set loss.aggregation=sequence_mean
                 --set ppo.responses_per_prompt=4 --set ppo.prompts_per_iteration=32

The ratio is (pi(y) / pi_old(y))^(1/length). It stays near 1, and the clip is therefore far smaller than PPO's. With
sequence_mean a response counts once, as in the paper; with token_mean it would count once for each of its tokens.
"""

import torch

from minirlhf import hookimpl


def gspo(logprobs, old_logprobs, advantages, mask, *, clip: float = 3e-4):
    """-min(A s, A clip(s, 1 - clip, 1 + clip)), s = exp(mean over the response's tokens of log pi/pi_old): (B,R)."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    s = mean.clamp(-20, 20).exp().expand(mask.shape)
    # The gradient of s sums over all tokens of its row, so a NaN advantage at a masked token would reach every one.
    advantages = torch.where(mask, advantages, 0.0)
    plain, clipped = advantages * s, advantages * s.clamp(1 - clip, 1 + clip)
    return -torch.minimum(plain, clipped), {"clipfrac": (clipped < plain).to(s.dtype)}


@hookimpl
def register_policy_losses():
    return {"gspo": gspo}
