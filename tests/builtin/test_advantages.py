"""Advantage functions: rows by hand, the identities between them, holes in the mask, an exact baseline."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.builtin.advantages import gae, mc, reward_to_go
from tests.helpers import seeded

pytestmark = pytest.mark.usefixtures("double")
NONE = torch.zeros(1)


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


FULL = torch.ones(1, 3, dtype=torch.bool)


def test_three_tokens_by_hand():
    rewards, values = row(1, 0, 2), row(0.5, 1, -1)
    assert reward_to_go(rewards, FULL, NONE, gamma=0.5).tolist() == [[1 + 0 + 0.5, 1, 2]]
    assert mc(rewards, values, FULL, NONE).tolist() == [[3 - 0.5, 2 - 1, 2 + 1]]
    # delta = 1 + 1 - .5 = 1.5, 0 - 1 - 1 = -2, 2 - 0 + 1 = 3; with gamma lam = .5: 3, -2 + 1.5, 1.5 - .25
    assert gae(rewards, values, FULL, NONE, lam=0.5).tolist() == [[1.25, -0.5, 3.0]]


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo():
    g = seeded()
    rewards, values = torch.randn(4, 7, generator=g), torch.randn(4, 7, generator=g)
    mask, none = torch.ones(4, 7, dtype=torch.bool), torch.zeros(4)
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    assert torch.allclose(gae(rewards, values, mask, none, gamma=0.9, lam=0.0), rewards + 0.9 * following - values)
    one = gae(rewards, values, mask, none, gamma=0.9, lam=1.0)
    assert torch.allclose(one, mc(rewards, values, mask, none, gamma=0.9))


def test_gae_is_the_weighted_mixture_of_n_step_advantages():
    rewards, values, lam, gamma = row(1, -2, 0.5, 3), row(0.2, 1, -1, 0.4), 0.7, 0.9
    r, v = rewards[0].tolist(), [*values[0].tolist(), 0.0]

    def n_step(t, n):
        n = min(n, 4 - t)
        return sum(gamma**i * r[t + i] for i in range(n)) + gamma**n * v[t + n] - v[t]

    got = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), NONE, gamma=gamma, lam=lam)[0]
    for t in range(4):
        left = 4 - t
        mixture = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, left)) + lam ** (left - 1) * n_step(
            t, left
        )
        assert got[t].item() == pytest.approx(mixture)


def test_a_cut_response_bootstraps_from_the_value_behind_its_end():
    after = torch.tensor([10.0])
    assert reward_to_go(row(1, 1, 1), FULL, after, gamma=0.5).tolist() == [[1 + 0.5 + 0.25 + 1.25, 1.5 + 2.5, 6]]
    assert gae(row(1, 1, 1), row(0, 0, 0), FULL, after, lam=0.0).tolist() == [[1, 1, 11]]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 1000))
def test_holes_are_stepped_over_as_if_they_were_cut_out(holes, seed):
    g, mask = seeded(seed), torch.tensor([holes])
    rewards = torch.randn(1, len(holes), generator=g, dtype=torch.float64)
    values = torch.randn(1, len(holes), generator=g, dtype=torch.float64)
    after = torch.randn(1, generator=g, dtype=torch.float64)
    rewards, values = rewards.where(mask, float("nan")), values.where(mask, float("nan"))
    kept = mask[0].nonzero().squeeze(1)
    full = torch.ones(1, len(kept), dtype=torch.bool)
    for function, inputs in ((gae, (rewards, values)), (mc, (rewards, values)), (reward_to_go, (rewards,))):
        got = function(*inputs, mask, after, gamma=0.9)
        assert got.isfinite().all()
        assert (got[~mask] == 0).all()
        if len(kept):
            compact = function(*(x[:, kept] for x in inputs), full, after, gamma=0.9)
            assert torch.allclose(got[:, kept], compact)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_with_the_exact_value_function_gae_is_the_true_advantage_for_every_lambda(lam):
    """Two binary actions, rewards r(a1, a2) at the end: enumerate the four episodes of a fixed stochastic policy."""
    p, reward = 0.3, {(0, 0): 1.0, (0, 1): -2.0, (1, 0): 0.5, (1, 1): 4.0}
    chance = {0: 1 - p, 1: p}
    v1 = {a: sum(chance[b] * reward[a, b] for b in (0, 1)) for a in (0, 1)}  # V after the first action
    v0 = sum(chance[a] * v1[a] for a in (0, 1))
    expected = dict.fromkeys((0, 1), 0.0)
    for a, b in itertools.product((0, 1), repeat=2):
        got = gae(row(0, reward[a, b]), row(v0, v1[a]), torch.ones(1, 2, dtype=torch.bool), NONE, lam=lam)[0]
        expected[a] += chance[b] * got[0].item()  # E over the rest of the episode, given the first action
    for a in (0, 1):
        assert expected[a] == pytest.approx(v1[a] - v0)  # Q(s0, a) - V(s0)
