"""A policy loss that bounds the weight of a token and keeps its gradient (CISPO, 2506.13585).

    minirlhf run --plugin plugins/cispo.py --loss cispo --set loss.high=0.3

With PPO's clip a token whose ratio has left the range has gradient 0; here it still has one, with a bounded weight.
"""

from minirlhf import hookimpl
from minirlhf.tensors import importance_ratio


def cispo(logprobs, old_logprobs, advantages, *, high: float = 0.2):
    """-sg(min(rho, 1 + high)) A log pi, where no gradient flows through sg(...): (B,R). Logged: share of tokens cut."""
    rho = importance_ratio(logprobs, old_logprobs).detach()
    return -rho.clamp(max=1 + high) * advantages * logprobs, {"cut": (rho > 1 + high).to(rho.dtype)}


@hookimpl
def register_policy_losses():
    return {"cispo": cispo}
