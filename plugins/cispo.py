"""A policy loss that cuts the weight of a token, not its gradient (CISPO, 2506.13585).

    minirlhf run --plugin plugins/cispo.py --loss cispo --set loss.high=0.3

PPO's clip silences a token whose ratio has left the range; here it goes on teaching, with a bounded weight.
"""

from minirlhf import hookimpl
from minirlhf.tensors import importance_ratio


def cispo(logprobs, old_logprobs, advantages, *, high: float = 0.2):
    """-sg(min(rho, 1 + high)) A log pi, sg = no gradient through it: (B,R)."""
    rho = importance_ratio(logprobs, old_logprobs).detach()
    return -rho.clamp(max=1 + high) * advantages * logprobs, {"cut": (rho > 1 + high).to(rho.dtype)}


@hookimpl
def register_policy_losses():
    return {"cispo": cispo}
