"""An advantage function without a value head: how much better than the greedy response (ReMax, 2310.10505).

    minirlhf run --plugin plugins/remax.py --advantage remax

Naming `greedy_scores` makes the loop decode and score a greedy response to every prompt; not naming `values` turns the
value loss off. A KL penalty inside the rewards is part of the return, but not of this baseline.
"""

import torch

from minirlhf import hookimpl


def remax(rewards, mask, greedy_scores):
    """A_t = (sum over t' >= t of r_t') - score of the greedy response: (B,R), 0 where masked."""
    rewards = torch.where(mask, rewards, 0.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    return torch.where(mask, to_go - greedy_scores.unsqueeze(1), 0.0)


@hookimpl
def register_advantage_functions():
    return {"remax": remax}
