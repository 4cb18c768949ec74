"""Advantage functions: by how much a token did better than expected (N2 to N7, and functions of groups).

rewards, values, mask (B,R) -> advantages (B,R), 0 where masked. A masked position inside a row (another speaker's
token) is stepped over: the result equals that of the row with those positions cut out. V after the last token is 0
unless `bootstrap_values` (B,) says otherwise. Whitening is the loop's, not theirs; `advantages + values` is the
value target.

Functions of a group compare the responses to one prompt by their *shaped* return, the sum of a row's rewards: the
score, minus beta KL where the KL is in the reward. The bare score would lose that KL silently. A row without any
token in the mask takes no part; a group whose returns are all equal gets exactly 0.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minirlhf import hookimpl
from minirlhf.tensors import ROUNDING, widened


def _discounted(x: Tensor, mask: Tensor, discount: float, after: Tensor | None = None) -> Tensor:
    """y_t = x_t + discount * y_(t+1) along R, from `after` (B,) behind the end, stepping over masked positions."""
    x = torch.where(mask, x, torch.zeros_like(x))
    running = torch.zeros_like(x[:, 0]) if after is None else after
    out = torch.zeros_like(x)
    for t in range(x.shape[1] - 1, -1, -1):
        here = x[:, t] + discount * running
        running = torch.where(mask[:, t], here, running)
        out[:, t] = torch.where(mask[:, t], here, torch.zeros_like(here))
    return out


def _next_values(values: Tensor, mask: Tensor, after: Tensor) -> Tensor:
    """V of the next unmasked position of the row, `after` (B,) behind the last one: (B,R)."""
    following, out = after, torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        out[:, t] = following
        following = torch.where(mask[:, t], values[:, t], following)
    return out


def _spread(rows: Tensor, mask: Tensor) -> Tensor:
    """Spread one number a row (B,) over its tokens: (B,R), 0 where masked."""
    return torch.where(mask, rows.unsqueeze(1), torch.zeros_like(rows).unsqueeze(1))


# ---- of one response (N2 to N7) ----------------------------------------------------------------------------


def trajectory_return(rewards: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """R(tau) = sum over t of gamma^t r_t on every token (N2): a token is credited with what came before it, too."""
    togo = _discounted(rewards, mask, gamma, bootstrap_values)
    first = mask.int().argmax(dim=1, keepdim=True)
    return _spread(togo.gather(1, first).squeeze(1), mask)


def reward_to_go(rewards: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """R_t = sum over t' >= t of gamma^(t'-t) r_t' (N3): a token is credited with what came after it."""
    return _discounted(rewards, mask, gamma, bootstrap_values)


def reward_to_go_baseline(rewards: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """R_t minus the mean of the batch's others at the same t (N4): without it, all actions rise when all rewards are
    positive.

    t counts the tokens of the mask. The row itself is left out of the mean (0 if no other row is as long): it would
    take part of each reward away, another part at each t, as fewer rows are left.
    """
    togo = widened(_discounted(rewards, mask, gamma, bootstrap_values))  # float32 would round the sums of a large batch
    at = (mask.cumsum(dim=1) - 1).clamp(min=0)  # which of its row's tokens
    sums = togo.new_zeros(mask.shape[1]).scatter_add(0, at.flatten(), togo.flatten())  # masked ones add 0
    counts = togo.new_zeros(mask.shape[1]).scatter_add(0, at.flatten(), mask.flatten().to(togo.dtype))
    baseline = (sums[at] - togo) / (counts[at] - 1).clamp(min=1)
    size = _discounted(rewards.abs(), mask, gamma, bootstrap_values.abs()).amax()
    differs = mask & ((togo - baseline).abs() > ROUNDING * size)  # equal returns minus their mean leave rounding noise
    return torch.where(differs, togo - baseline, 0.0).to(rewards.dtype)


def mc(rewards: Tensor, values: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Reward-to-go minus V(s_t) (N5): unbiased whatever V is; V takes out what was to be expected."""
    togo = _discounted(rewards, mask, gamma, bootstrap_values)
    return torch.where(mask, togo - values, torch.zeros_like(togo))


def td(rewards: Tensor, values: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """A^1 = r_t + gamma V(s_t+1) - V(s_t) (N6): the least variance; as wrong as V is."""
    return gae(rewards, values, mask, bootstrap_values, gamma=gamma, lam=0.0)


def nstep(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0, n: int = 3
) -> Tensor:
    """A^n = r_t + ... + gamma^(n-1) r_(t+n-1) + gamma^n V(s_t+n) - V(s_t) (N6); past the end no rewards and no V.

    n = 1 is `td`; n of the length of the response or more is `mc`. Raises ValueError if n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    ahead = values
    for _ in range(min(n, mask.shape[1])):  # ahead_t = r_t + gamma ahead_(t+1): one reward more, one step further
        ahead = torch.where(mask, rewards + gamma * _next_values(ahead, mask, bootstrap_values), ahead)
    return torch.where(mask, ahead - values, torch.zeros_like(values))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    bootstrap_values: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Tensor:
    """A_t = delta_t + gamma lam A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t (N7; 1506.02438).

    lam = 0 is the one-step advantage (more bias), lam = 1 is `mc` (more variance).
    """
    delta = rewards + gamma * _next_values(values, mask, bootstrap_values) - values
    return _discounted(delta, mask, gamma * lam)


def reinforce_pp(rewards: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """REINFORCE++: reward-to-go, meant to be whitened over the batch (2501.03262); the preset does that.

    The batch's mean is the baseline and its standard deviation the scale, so neither V nor a group is needed.
    """
    return reward_to_go(rewards, mask, bootstrap_values, gamma=gamma)


# ---- of a group of responses to one prompt -----------------------------------------------------------------


def _centred(rewards: Tensor, mask: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shaped return minus the mean of its group, the group's size and its unbiased std, for each row: (B,) each.

    Raises ValueError for a group of one row: there is nothing to compare it with. A group that *became* one, because
    nobody scored the others, has nothing to learn from: 0.
    """
    _, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    if bool((sizes == 1).any()):
        raise ValueError("a group has only one response; set ppo.responses_per_prompt to 2 or more")
    takes_part = mask.any(dim=1)
    exact = widened(torch.where(mask, rewards, torch.zeros_like(rewards)))
    returns, size = exact.sum(dim=1), exact.abs().sum(dim=1)

    def over_group(x: Tensor, how: str, missing: float) -> Tensor:
        """sum, amax or amin of x (B,) over the rows of each row's group that take part: (B,)."""
        kept = torch.where(takes_part, x, torch.full_like(x, missing))
        return x.new_full((len(sizes),), missing).scatter_reduce(0, index, kept, how)[index]

    count = over_group(torch.ones_like(returns), "sum", 0.0)
    centred = returns - over_group(returns, "sum", 0.0) / count.clamp(min=1)
    # Equal returns minus their mean leave rounding noise, which a small std would blow up: said here, not computed.
    # Token rewards that sum to the same score differ by the rounding of their own size.
    spread = over_group(returns, "amax", -torch.inf) - over_group(returns, "amin", torch.inf)
    differ = spread > ROUNDING * over_group(size, "amax", 0.0)
    centred = torch.where(takes_part & differ, centred, torch.zeros_like(centred))
    std = (over_group(centred.square(), "sum", 0.0) / (count - 1).clamp(min=1)).sqrt()
    return centred.to(rewards.dtype), count.to(rewards.dtype), std.to(rewards.dtype)


def rloo(rewards: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Shaped return minus the mean of the group's others (2402.14740): unbiased, sums to 0 over a group.

    The others' mean is (n mean - own) / (n - 1), so this is the distance from the whole mean times n / (n - 1).
    """
    centred, count, _ = _centred(rewards, mask, group)
    return _spread(centred * count / (count - 1).clamp(min=1), mask)


def dr_grpo(rewards: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Shaped return minus the group's mean (2503.20783): rloo times (n - 1) / n, and grpo without its division."""
    return _spread(_centred(rewards, mask, group)[0], mask)


def grpo(rewards: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """(Shaped return minus the group's mean) / (the group's unbiased std + 1e-4) (2402.03300).

    The division makes every prompt weigh alike, however much its responses differ: not the gradient of the mean score.
    """
    centred, _, std = _centred(rewards, mask, group)
    return _spread(centred / (std + 1e-4), mask)


@hookimpl
def register_advantage_functions() -> Mapping[str, Any]:
    one = (trajectory_return, reward_to_go, reward_to_go_baseline, mc, td, nstep, gae, reinforce_pp)
    return {function.__name__: function for function in (*one, rloo, grpo, dr_grpo)}
