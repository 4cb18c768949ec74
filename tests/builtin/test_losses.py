"""Policy losses a token, by hand: the surrogate, the clip on either side of it, where it is active."""

import math

import pytest
import torch

from minirlhf.builtin.losses import ppo_clip, ratio


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


def test_at_the_old_policy_both_have_the_gradient_of_the_vanilla_policy_gradient():
    logprobs, advantages = torch.tensor([[-0.3, -1.2]], requires_grad=True), torch.tensor([[2.0, -0.7]])
    for function in (ratio, lambda *x: ppo_clip(*x)[0]):
        (gradient,) = torch.autograd.grad(function(logprobs, logprobs.detach(), advantages).sum(), logprobs)
        assert torch.allclose(gradient, -advantages)  # d/dlogp of -A log p
