"""KL of a policy to its reference along whole responses, exact over the vocabulary.

Forward passes are over a few responses at a time. Not here: estimators of KL for training (builtin/kl.py).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minirlhf.builtin.kl import exact
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import PolicyOutput, Rollout
from minirlhf.tensors import masked_sum

PASS = 32  # responses in a forward pass: the states of more leave the caches, and a small model is a quarter slower


@torch.no_grad()
def sequence_kl(policy: Policy, reference: Reference, rollout: Rollout) -> Tensor:
    """sum_t KL(pi(.|s_t), ref(.|s_t)) along the policy's own responses: (B,) nats per sequence.

    Its mean estimates KL(pi, ref) over whole responses without bias, with less variance than sum_t log pi/ref.
    """
    kl = [
        summed_kl(policy.forward_pass(part, with_entropy=False), reference.forward_pass(part), part.mask)
        for part in passes(rollout)
    ]
    return torch.cat(kl)


def passes(rollout: Rollout) -> Iterator[Rollout]:
    """Yield the same responses, PASS at a time."""
    for first in range(0, len(rollout), PASS):
        yield rollout.rows(torch.arange(first, min(first + PASS, len(rollout))))


def summed_kl(active: PolicyOutput, frozen: PolicyOutput, mask: Tensor) -> Tensor:
    """Sum over the tokens of a response of KL(active, frozen), exact over the vocabulary: mask (B,R) -> (B,) nats."""
    rows = [slice(row, row + 1) for row in range(len(mask))]  # one at a time: logits of all would be large
    kl = [masked_sum(exact(active.log_dist(r), frozen.log_dist(r)), mask[r]) for r in rows]
    return torch.stack(kl).cpu().double()
