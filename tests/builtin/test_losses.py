"""Policy losses a token, by hand: the surrogate, the clip on either side of it, where it is active."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.builtin.losses import ppo_clip, ratio, register_policy_losses
from tests.helpers import built, seeded


def test_ratio_by_hand():
    new, old = torch.tensor([[math.log(0.6), math.log(0.1)]]), torch.tensor([[math.log(0.3), math.log(0.2)]])
    assert ratio(new, old, torch.tensor([[1.0, -3.0]])).tolist() == [pytest.approx([-2.0, 1.5])]


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "active"),
    [
        (1.5, 1.0, -1.2, True),  # a good token already pushed far enough: no more
        (1.5, -1.0, 1.5, False),  # a bad token that became likelier: pushed back without limit
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),
        (1.1, 1.0, -1.1, False),
        (1.5, 0.0, 0.0, False),  # outside the range, but the clip changes nothing
    ],
)
def test_the_clip_by_hand(rho, advantage, loss, active):
    logprobs = torch.tensor([[math.log(rho)]], requires_grad=True)
    values, metrics = ppo_clip(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]))
    assert values.item() == pytest.approx(loss)
    assert metrics["clipfrac"].item() == active
    assert metrics["outside"].item() == (rho in (0.5, 1.5))
    values.sum().backward()
    assert (logprobs.grad.item() == 0) == (active or advantage == 0)


def test_a_ratio_at_the_edge_of_the_range_is_inside_of_it():
    """exp(0) is 1 exactly, and a clip of 0 a range of one number."""
    for advantage in (1.0, -1.0):
        _, metrics = ppo_clip(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([[advantage]]), clip=0.0)
        assert {name: (x.item(), x.dtype) for name, x in metrics.items()} == {
            "clipfrac": (0.0, torch.float32),
            "outside": (0.0, torch.float32),
        }


def test_the_two_sides_can_differ():
    logprobs, advantages = torch.tensor([[math.log(1.3), math.log(0.7)]]), torch.tensor([[1.0, -1.0]])
    values, _ = ppo_clip(logprobs, torch.zeros(1, 2), advantages, clip_low=0.1, clip_high=0.28)
    assert values.tolist() == [pytest.approx([-1.28, 0.9])]


def test_log_ratios_of_a_hundred_stay_finite_with_their_gradient():
    logprobs = torch.tensor([[100.0, -100.0]], requires_grad=True)
    for function in (ratio, lambda *x: ppo_clip(*x)[0]):
        values = function(logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))
        assert values.isfinite().all()
        (gradient,) = torch.autograd.grad(values.sum(), logprobs)
        assert gradient.isfinite().all()


# ---- all of them -------------------------------------------------------------------------------------------

ALL = register_policy_losses()


def call(name, logprobs, old, advantages, beta=1.0):
    """(values, metrics) as the loop gets them, bound by name."""
    function = built("loss", ALL[name])
    given = {"logprobs": logprobs, "old_logprobs": old, "advantages": advantages, "beta": beta}
    given |= {"mask": torch.ones_like(advantages, dtype=torch.bool), "ref_logprobs": old}
    return function(given)


def test_these_are_the_losses():
    assert set(ALL) == {"pg", "ratio", "ppo_penalty", "ppo_clip"}


def test_pg_by_hand():
    logprobs = torch.tensor([[-0.5, -2.0]], requires_grad=True)
    values, _ = call("pg", logprobs, torch.zeros(1, 2), torch.tensor([[3.0, -1.0]]))
    assert values.tolist() == [[1.5, -2.0]]
    values.sum().backward()
    assert logprobs.grad.tolist() == [[-3.0, 1.0]]


def test_the_penalty_by_hand():
    """rho = 2: -A 2 + beta (2 log 2 - 1); its gradient in log rho is -2 A + beta 2 log 2."""
    logprobs = torch.tensor([[math.log(0.6)]], requires_grad=True)
    values, metrics = call("ppo_penalty", logprobs, torch.tensor([[math.log(0.3)]]), torch.tensor([[1.5]]), beta=0.25)
    assert values.item() == pytest.approx(-3 + 0.25 * (2 * math.log(2) - 1), abs=1e-6)
    assert metrics["penalty_kl"].item() == pytest.approx(2 * math.log(2) - 1, abs=1e-6)
    values.sum().backward()
    assert logprobs.grad.item() == pytest.approx(-3 + 0.25 * 2 * math.log(2), abs=1e-6)


def test_over_the_old_policys_tokens_the_penalty_is_the_kl_of_the_new_one_to_it():
    """sum_v old(v) (rho log rho - (rho - 1)) = sum_v p (log p - log old), by enumeration of 7 tokens."""
    new, old = (torch.randn(7, generator=seeded(i), dtype=torch.float64).log_softmax(0) for i in (0, 1))
    zero = torch.zeros(1, 7, dtype=torch.float64)
    _, metrics = call("ppo_penalty", new.unsqueeze(0), old.unsqueeze(0), zero)
    mean = (old.exp() * metrics["penalty_kl"][0]).sum()
    assert mean.item() == pytest.approx((new.exp() * (new - old)).sum().item(), abs=1e-12)
    assert (metrics["penalty_kl"] >= 0).all()


@pytest.mark.parametrize("name", ALL)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5),
    st.floats(-10, 10, width=32),
    st.floats(0, 10, width=32),
)
def test_value_and_gradient_are_finite_at_every_ratio(name, log_ratios, advantage, beta):
    logprobs = torch.tensor([log_ratios], requires_grad=True)
    advantages = torch.full((1, len(log_ratios)), advantage)
    values, _ = call(name, logprobs, torch.zeros_like(advantages), advantages, beta)
    values.sum().backward()
    assert values.isfinite().all()
    assert logprobs.grad.isfinite().all()
    if advantage == 0 and beta == 0:
        assert (values == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_at_the_old_policy_each_has_the_vanilla_gradient(name):
    logprobs, advantages = torch.tensor([[-0.3, -1.2]], requires_grad=True), torch.tensor([[2.0, -0.7]])
    values, _ = call(name, logprobs, logprobs.detach(), advantages)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    assert torch.allclose(gradient, -advantages)
