"""KL estimators: Schulman's closed forms by integration, non-negativity, gradients, banned tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.builtin.kl import abs as absolute
from minirlhf.builtin.kl import exact, k1, k2, k3, ratio_k3
from tests.helpers import seeded


def gaussian_moments(estimator, mu):
    """Mean and standard deviation of an estimator when x ~ q = N(0,1) and ref = N(mu,1), by quadrature."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    log_q, log_p = -(x**2) / 2, -((x - mu) ** 2) / 2
    value = estimator(log_q, log_p)
    mean = (weight * value).sum().item()
    return mean, math.sqrt((weight * (value - mean) ** 2).sum().item())


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_schulmans_table(mu):
    kl = mu**2 / 2  # KL(N(0,1), N(mu,1))
    mean, std = gaussian_moments(k1, mu)
    assert (mean / kl, std / kl) == pytest.approx((1, 2 / mu), abs=1e-6)
    mean, std = gaussian_moments(k2, mu)
    assert (mean / kl - 1, std / kl) == pytest.approx((mu**2 / 4, math.sqrt(2 + mu**2)), abs=1e-6)
    mean, std = gaussian_moments(k3, mu)
    closed = 2 * math.sqrt(math.exp(mu**2) - 1 - mu**2) / mu**2
    assert (mean / kl - 1, std / kl) == pytest.approx((0, closed), abs=1e-6)


@given(st.floats(-100, 100, width=32))
def test_k2_k3_and_abs_are_finite_and_never_negative(d):
    logprobs, ref = torch.tensor([[d]]), torch.tensor([[0.0]])
    for estimator in (k2, k3, absolute):
        value = estimator(logprobs, ref)
        assert value.isfinite().all()
        assert value >= 0


def test_abs_by_hand():
    assert absolute(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])).tolist() == [[0.5, 1.0]]


def test_k3_near_zero_in_float32():
    d = torch.tensor([[1e-4]])
    assert k3(d, torch.zeros(1, 1)).item() == pytest.approx(5.0e-9, rel=1e-3)  # the naive form gives -1.7e-8


def test_only_the_argument_of_the_exp_is_clamped_so_that_a_far_token_keeps_a_gradient():
    d = torch.tensor([[-50.0, 50.0]], requires_grad=True)
    k3(d, torch.zeros(1, 2)).sum().backward()
    assert d.grad.tolist() == [[1.0, 1.0]]  # of expm1(20) + d, and of expm1(-20) + d
    d = torch.tensor([[-2.0]], requires_grad=True)
    k3(d, torch.zeros(1, 1)).sum().backward()
    assert d.grad.item() == pytest.approx(1 - math.exp(2))


def test_exact_by_hand_and_by_the_mean_of_k1_and_k3():
    logits, ref_logits = torch.randn(2, 3, 7, generator=seeded()), torch.randn(2, 3, 7, generator=seeded(1))
    p, q = logits.softmax(-1), ref_logits.softmax(-1)
    by_hand = (p * (p / q).log()).sum(-1)
    value = exact(p.log(), q.log())
    assert torch.allclose(value, by_hand)
    for estimator in (k1, k3):  # their expectation under p is the KL
        every = estimator(p.log().flatten(0, 1).T, q.log().flatten(0, 1).T).T.view(2, 3, 7)
        assert torch.allclose((p * every).sum(-1), by_hand, atol=1e-6)


def test_a_token_banned_in_both_contributes_nothing_not_even_to_the_gradient():
    logits = torch.tensor([[[0.3, -0.4, 9.9]]], requires_grad=True)
    ref = torch.tensor([[[0.1, 0.2, -3.0]]])
    ban = torch.tensor([False, False, True])
    value = exact(
        logits.masked_fill(ban, float("-inf")).log_softmax(-1), ref.masked_fill(ban, float("-inf")).log_softmax(-1)
    )
    without = exact(logits[..., :2].log_softmax(-1), ref[..., :2].log_softmax(-1))
    assert value.item() == pytest.approx(without.item())
    value.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 2] == 0
    assert logits.grad.abs().sum() > 0


def test_a_token_that_one_of_the_two_bans():
    """Banned by the policy alone: it is never taken and adds 0, so KL = log 2 for p = (1, 0), ref = (1/2, 1/2). Banned
    by the reference alone: no finite number of nats says how far that is."""
    half, one, ban = math.log(0.5), 0.0, float("-inf")
    log_p = torch.tensor([[[one, ban]], [[half, half]]])
    log_ref = torch.tensor([[[half, half]], [[one, ban]]])
    assert exact(log_p, log_ref).flatten().tolist() == pytest.approx([math.log(2), math.inf])


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.lists(st.floats(-30, 30), min_size=6, max_size=6))
def test_exact_is_never_negative_beyond_rounding(logits, ref):
    p = torch.tensor([[logits]], dtype=torch.float64).log_softmax(-1)
    q = torch.tensor([[ref[: len(logits)]]], dtype=torch.float64).log_softmax(-1)
    assert exact(p, q).item() >= -1e-12


def test_ratio_k3_has_the_value_of_k3_and_on_policy_the_gradient_of_k2():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, -3.0]], dtype=torch.float64)
    value = ratio_k3(logprobs, logprobs.detach(), ref)
    by_hand = [math.expm1(-0.5) + 0.5, math.expm1(1.0) - 1, 0.0]
    assert value.tolist() == [pytest.approx(by_hand, abs=1e-12)]
    value.sum().backward()
    assert logprobs.grad.tolist() == [pytest.approx([0.5, -1.0, 0.0], abs=1e-12)]  # d
    off = ratio_k3(logprobs.detach(), logprobs.detach() - math.log(2), ref)  # twice as likely as when sampled
    assert off.tolist() == [pytest.approx([2 * x for x in by_hand], abs=1e-12)]


@given(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32))
def test_every_estimator_of_the_taken_token_is_finite_with_its_gradient(new, old):
    logprobs = torch.tensor([[new]], requires_grad=True)
    ref, before = torch.zeros(1, 1), torch.tensor([[old]])
    for value in (*(f(logprobs, ref) for f in (k1, k2, k3, absolute)), ratio_k3(logprobs, before, ref)):
        (gradient,) = torch.autograd.grad(value.sum(), logprobs)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
