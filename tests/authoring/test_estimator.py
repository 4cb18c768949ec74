"""Checks of an estimator: for every check, a KL estimator or a loss that fails exactly that one."""

import pytest
import torch

from minirlhf.testing import assert_sound


def multiplied(logprobs, ref_logprobs, mask):
    return ((logprobs - ref_logprobs) * mask).sum(dim=1, keepdim=True).expand(mask.shape)


def averaged(logprobs, ref_logprobs):
    d = logprobs - ref_logprobs
    return d - torch.zeros_like(d).sum() + d.shape[1]


def first(logprobs, ref_logprobs, mask):
    d = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return d + d[0, 0]


def rooted(logprobs, ref_logprobs, mask):
    d = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return (d - d.detach()).abs().sqrt()


def in_place(logprobs, ref_logprobs):
    ratio = (logprobs - ref_logprobs).exp()
    ratio -= 1
    return ratio


def integer(logprobs, ref_logprobs):
    return (logprobs > ref_logprobs).long()


ESTIMATORS = {
    multiplied: {"padding", "gradient"},
    averaged: {"width"},
    first: {"order"},
    rooted: {"gradient"},
    integer: {"contract"},
    in_place: {"gradient"},
}


@pytest.mark.parametrize("function", ESTIMATORS, ids=lambda f: f.__name__)
def test_an_estimator_that_fails(function):
    with pytest.raises(AssertionError) as error:
        assert_sound("kl", function)
    failed = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert failed == ESTIMATORS[function]


def test_a_loss_that_has_no_gradient():
    def loss(advantages):
        return -advantages

    with pytest.raises(AssertionError, match="compute from logprobs"):
        assert_sound("loss", loss)
