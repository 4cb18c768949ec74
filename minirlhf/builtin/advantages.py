"""Advantage functions: how much better a token was than expected (N3, N5 to N7).

rewards, values, mask (B,R) -> advantages (B,R), 0 where masked. A masked position inside a row (another speaker's
token) is stepped over: the result equals that of the row with those positions cut out. V after the last token is 0
unless `bootstrap_values` (B,) says otherwise. Whitening is the loop's, not theirs; `advantages + values` is the
value target.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minirlhf import hookimpl


def _discounted(x: Tensor, mask: Tensor, discount: float, after: Tensor | None = None) -> Tensor:
    """y_t = x_t + discount * y_(t+1) along R, from `after` (B,) behind the end, stepping over masked positions."""
    x = torch.where(mask, x, torch.zeros_like(x))
    running = torch.zeros_like(x[:, 0]) if after is None else after.to(x.dtype)
    out = torch.zeros_like(x)
    for t in range(x.shape[1] - 1, -1, -1):
        here = x[:, t] + discount * running
        running = torch.where(mask[:, t], here, running)
        out[:, t] = torch.where(mask[:, t], here, torch.zeros_like(here))
    return out


def _next_values(values: Tensor, mask: Tensor, after: Tensor | None = None) -> Tensor:
    """V of the next unmasked position of the row, `after` (0) behind the last one: (B,R)."""
    following = torch.zeros_like(values[:, 0]) if after is None else after.to(values.dtype)
    out = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        out[:, t] = following
        following = torch.where(mask[:, t], values[:, t], following)
    return out


def reward_to_go(rewards: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """R_t = sum over t' >= t of gamma^(t'-t) r_t' (N3): a token is credited with what came after it."""
    return _discounted(rewards, mask, gamma, bootstrap_values)


def mc(rewards: Tensor, values: Tensor, mask: Tensor, bootstrap_values: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Reward-to-go minus V(s_t) (N5): unbiased whatever V is; V takes out what was to be expected."""
    togo = _discounted(rewards, mask, gamma, bootstrap_values)
    return torch.where(mask, togo - values, torch.zeros_like(togo))


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


@hookimpl
def register_advantage_functions() -> Mapping[str, Any]:
    return {"gae": gae, "mc": mc, "reward_to_go": reward_to_go}
