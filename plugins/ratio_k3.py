"""A KL estimator: k3 with an importance ratio, for the loss.

    minirlhf run --plugin plugins/ratio_k3.py --kl ratio_k3 --set kl.place=loss

k3 alone in the loss follows the forward KL(ref, pi). Weighted with pi / pi_old, which is 1 in the first
update but carries a gradient, its gradient on-policy is d grad(log pi), that of k2: the KL(pi, ref) of this
token.
"""

from minirlhf import hookimpl
from minirlhf.tensors import LOG_CLAMP, ratio


def ratio_k3(logprobs, old_logprobs, ref_logprobs):
    """pi / pi_old (exp(-d) - 1 + d), d = log pi - log ref: (B,R) nats a token."""
    d = logprobs - ref_logprobs
    k3 = (-d).clamp(-LOG_CLAMP, LOG_CLAMP).expm1() + d
    return ratio(logprobs, old_logprobs) * k3


@hookimpl
def register_kl_estimators():
    return {"ratio_k3": ratio_k3}
