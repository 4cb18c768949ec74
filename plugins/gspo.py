"""A policy loss with one ratio a response instead of one a token (GSPO, 2507.18071).

    minirlhf run --plugin plugins/gspo.py --loss gspo --advantage rloo --set loss.aggregation=sequence_mean
                 --set ppo.responses_per_prompt=4 --set ppo.prompts_per_iteration=32

The ratio is (pi(y) / pi_old(y))^(1/length), so it stays near 1 and the clip is far smaller than PPO's. With
sequence_mean the loss of a response is counted once, as its authors do; with token_mean it would be counted once a
token.
"""

import torch

from minirlhf import hookimpl


def gspo(logprobs, old_logprobs, advantages, mask, *, clip: float = 3e-4):
    """-min(A s, A clip(s, 1 - clip, 1 + clip)), s = exp(mean over the response's tokens of log pi/pi_old): (B,R)."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    s = mean.clamp(-20, 20).exp().expand(mask.shape)
    advantages = torch.where(mask, advantages, 0.0)  # s is one number a row: NaN behind the mask would reach all of it
    plain, clipped = advantages * s, advantages * s.clamp(1 - clip, 1 + clip)
    return -torch.minimum(plain, clipped), {"clipfrac": (clipped < plain).to(s.dtype)}


@hookimpl
def register_policy_losses():
    return {"gspo": gspo}
