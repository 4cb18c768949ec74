"""A KL estimator: both directions at once, KL(pi, ref) + KL(ref, pi), over the whole distribution (Jeffreys).

    minirlhf run --plugin plugins/jeffreys.py --kl jeffreys --set kl.place=loss

KL(pi, ref) charges little where the policy drops a token that the reference likes; KL(ref, pi) charges a lot for it.
Naming `log_dist` and `ref_log_dist` makes the loop compute whole distributions. `minirlhf audit kl jeffreys --plugin
plugins/jeffreys.py` tells what it optimises.
"""

import torch

from minirlhf import hookimpl


def jeffreys(log_dist, ref_log_dist):
    """sum_v (p(v) - ref(v)) (log p(v) - log ref(v)): (B,R) nats a token, never negative."""
    banned = log_dist.isneginf()  # ids that are never sampled: -inf - -inf would be NaN
    d = log_dist.masked_fill(banned, 0.0) - ref_log_dist.masked_fill(banned, 0.0)
    return torch.where(banned, 0.0, (log_dist.exp() - ref_log_dist.exp()) * d).sum(dim=-1)


@hookimpl
def register_kl_estimators():
    return {"jeffreys": jeffreys}
