"""Sampling and scoring use one distribution; inverse CDF draws it exactly; cuts touch `sample` only."""

import math

import pytest
import torch

from minirlhf.models.sampler import Sampler

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0, -1.0]])


def test_log_dist_is_softmax_at_the_temperature_without_banned_ids():
    log_dist = Sampler(2.0, banned=(0, 3), stops=(4,)).log_dist(LOGITS)
    weights = torch.tensor([0.0, 0.5, 1.0, 0.0, -0.5]).exp() * torch.tensor([0, 1, 1, 0, 1])
    assert log_dist.exp()[0].tolist() == pytest.approx((weights / weights.sum()).tolist())
    assert log_dist[0, 0] == float("-inf")


def test_inverse_cdf_gives_each_id_its_share_of_the_unit_interval():
    sampler = Sampler(1.0, banned=(0, 3), stops=(4,))
    n = 200_000
    uniform = (torch.arange(n) + 0.5) / n
    ids = sampler.sample(LOGITS.expand(n, -1), uniform)
    share = torch.bincount(ids, minlength=5) / n
    # Stratified uniforms: the share differs from the probability by at most one step at each end.
    assert (share - sampler.log_dist(LOGITS)[0].exp()).abs().max() < 3e-5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("banned", [(0, 1), (3, 4), (0, 4)])
def test_an_impossible_id_is_never_taken_even_at_the_ends(uniform, banned):
    ids = Sampler(1.0, banned=banned, stops=(2,)).sample(LOGITS, torch.tensor([uniform]))
    assert ids.item() not in banned


def test_temperature_zero_is_greedy():
    greedy = Sampler(0.0, banned=(3,), stops=(4,))
    assert greedy.sample(LOGITS, torch.tensor([0.99])).item() == 2
    assert greedy.sample(torch.cat([LOGITS, -LOGITS]), torch.tensor([0.99, 0.0])).tolist() == [2, 4]
    # What the policy says of its tokens is then its distribution at temperature 1: (e^0, e^1, e^2, 0, e^-1) / sum.
    total = 1 + math.e + math.e**2 + math.exp(-1)
    expected = [1 / total, math.e / total, math.e**2 / total, 0.0, math.exp(-1) / total]
    assert greedy.log_dist(LOGITS).exp()[0].tolist() == pytest.approx(expected)


def test_a_small_temperature_is_not_greedy():
    """Logits 0 and 1 at 0.5: the less likely one has 1 / (1 + e^2) = .119 of the unit interval, in front."""
    sampler = Sampler(0.5, banned=(), stops=(1,))
    drawn = sampler.sample(torch.tensor([[0.0, 1.0]]).expand(4, -1), torch.tensor([0.0, 0.118, 0.12, 0.99]))
    assert drawn.tolist() == [0, 0, 1, 1]


def test_without_a_cut_a_rare_token_has_its_share():
    """e^-18 = 1.5e-8, in front, and the other, 1 in float32: with that one alone a nucleus of 1 is full."""
    rare = torch.tensor([[-18.0, 0.0]])
    drawn = Sampler(1.0, banned=(), stops=(1,)).sample(rare.expand(2, -1), torch.tensor([0.0, 1e-6]))
    assert drawn.tolist() == [0, 1]


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_a_constant_on_all_logits_of_a_row_changes_no_draw(shift):
    """0 and 1: the first has 1 / (1 + e) = .269 of the unit interval. e^500 is more than float32 holds, e^-500 is 0."""
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [shift, shift + 1], [shift, shift + 1]])
    drawn = Sampler(1.0, banned=(), stops=(1,)).sample(logits, torch.tensor([0.268, 0.27, 0.268, 0.27]))
    assert drawn.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_of_more_digits_than_the_logits_draws_as_well(dtype):
    """1 - 2^-53, which is 1 in float32: the last possible token."""
    uniform = torch.tensor([0.25, 1 - 2**-53], dtype=torch.float64)
    drawn = Sampler(1.0, banned=(3,), stops=(2,)).sample(torch.zeros(2, 4, dtype=dtype), uniform)
    assert drawn.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("cut", "possible"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.6}, {3}),  # p(3) = .636
        ({"top_p": 0.7}, {2, 3}),  # the token that crosses the border stays
        ({"min_p": 0.3}, {2, 3}),  # p(2)/p(3) = e^-1 = .37, p(1)/p(3) = .14
        ({"min_p": 1.0}, {3}),  # none is more likely than the best, which stays
    ],
)
def test_cuts_restrict_what_is_sampled_and_not_what_is_scored(cut, possible):
    plain, sampler = Sampler(1.0, banned=(), stops=(4,)), Sampler(1.0, banned=(), stops=(4,), **cut)
    ids = sampler.sample(LOGITS.expand(1000, -1), torch.arange(1000) / 1000)
    assert set(ids.tolist()) == possible
    assert torch.equal(sampler.log_dist(LOGITS), plain.log_dist(LOGITS))


def test_a_nucleus_that_is_full_takes_no_more():
    """Four tokens of 1/4: two of them are the 0.5 that is asked for, the third is not needed."""
    sampler = Sampler(1.0, banned=(), stops=(3,), top_p=0.5)
    ids = sampler.sample(torch.zeros(100, 4), torch.arange(100) / 100)
    assert len(set(ids.tolist())) == 2


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_probabilities_are_float32_or_better(dtype, expected):
    """And the logits are left as they were."""
    logits = LOGITS.to(dtype)
    log_dist = Sampler(0.5, banned=(0,), stops=(4,)).log_dist(logits)
    assert log_dist.dtype == expected
    assert float(log_dist.double().exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(logits, LOGITS.to(dtype))
