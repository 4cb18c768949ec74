"""Masked arithmetic: values by hand, junk under the mask without effect, no NaN from degenerate batches."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minirlhf.tensors import (
    gather_logprobs,
    importance_ratio,
    last_index,
    masked_mean,
    masked_sum,
    moments,
    whiten,
    widened,
)

NAN = float("nan")

X = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("inf"), 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sum_mean_and_moments_ignore_junk_under_the_mask():
    assert masked_sum(X, MASK) == 7
    assert masked_mean(X, MASK) == pytest.approx(7 / 3)
    stats = moments(X, MASK)
    assert (stats.total, stats.squares, stats.count) == (7, 21, 3)
    assert stats.variance() == pytest.approx((21 - 49 / 3) / 2)  # numbers 1, 2, 4
    assert stats.variance(unbiased=False) == pytest.approx((21 - 49 / 3) / 3)


def test_an_empty_mask_gives_zero_and_no_nan():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(X, nothing) == 0
    assert moments(X, nothing).mean == 0
    assert moments(X, nothing).variance() == 0


def test_gradients_do_not_pass_junk():
    x = X.clone().requires_grad_()
    masked_mean(3 * x, MASK).backward()
    assert torch.equal(x.grad, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("batch", [-4 / 3, -1 / 3, 5 / 3]),  # 1, 2, 4 minus 7/3, before the division
        ("population", [-4 / 3, -1 / 3, 5 / 3]),
        ("scale", [1, 2, 4]),
        ("none", [1, 2, 4]),
    ],
)
def test_whitening_variants_by_hand(variant, expected):
    std = {"batch": math.sqrt(7 / 3), "population": math.sqrt(14 / 9), "scale": math.sqrt(7 / 3), "none": 1.0}[variant]
    out, scale = whiten(X, MASK, variant)
    assert scale == pytest.approx(std)
    assert out[MASK].tolist() == pytest.approx([e / std for e in expected])
    assert (out[~MASK] == 0).all()


@pytest.mark.parametrize("variant", ["batch", "population", "scale"])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_no_variance_gives_exact_zeros_and_says_so(variant, value):
    x = torch.full((2, 3), value) + torch.tensor([[0, 1e-9, 0], [0, 0, 0]])
    out, scale = whiten(x, torch.ones(2, 3, dtype=torch.bool), variant)
    if value == 0.0:  # 1e-9 beside 0 is a real difference, beside 3 it is rounding
        assert scale < 1e-8
        assert (out != 0).any()
    else:
        assert (out == 0).all()
        assert scale == 1.0


@pytest.mark.parametrize("variant", ["batch", "scale"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_what_is_rounding_is_measured_against_the_largest_number_whitened(size, variant):
    """The std of two numbers is their difference / sqrt(2); junk under the mask is no size."""
    mask = torch.tensor([[True, True, False]])
    for share, noise in ((0.9e-6, True), (1.1e-6, False)):
        x = torch.tensor([[1.0 - math.sqrt(2) * share, 1.0, -1e9]], dtype=torch.float64) * -size  # std = share x size
        out, scale = whiten(x, mask, variant)
        assert bool((out == 0).all()) is noise
        assert scale == pytest.approx(1.0 if noise else share * size, rel=1e-3)


def test_whitening_one_token_gives_zero_and_not_nan():
    out, _ = whiten(X, torch.tensor([[True, False, False], [False, False, False]]), "batch")
    assert (out == 0).all()


def test_ratio_is_finite_at_any_distance():
    rho = importance_ratio(torch.tensor([100.0, -100.0, 0.5]), torch.tensor([0.0, 0.0, 0.0]))
    assert rho.tolist() == pytest.approx([math.exp(20), math.exp(-20), math.exp(0.5)])


def test_gather_and_last_index():
    dist = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]]).log()
    assert gather_logprobs(dist, torch.tensor([[2, 0]])).exp().tolist() == [pytest.approx([0.7, 0.5])]
    holes = torch.tensor([[True, False, True, False], [False] * 4, [False, True, False, False]])
    assert last_index(holes).tolist() == [2, -1, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10000.1, 10000.101], False),
        ([1e-9, 3e-9], True),
        ([5.0], False),
        ([], False),
        ([0.0, 0.0], False),
        # the std of two numbers is their difference / sqrt(2); the border is 1e-6 of their size, whatever that is
        ([1000.0, 1000.0 + 1.5e-3], True),
        ([1000.0, 1000.0 + 1.3e-3], False),
        ([1e-3, 1e-3 + 1.5e-9], True),
        ([1e-3, 1e-3 + 1.3e-9], False),
    ],
)
def test_numbers_vary_if_they_differ_by_more_than_rounding(values, expected):
    x = torch.tensor(values, dtype=torch.float64)
    assert moments(x, torch.ones_like(x, dtype=torch.bool)).varies is expected


# ---- a device without float64 -----------------------------------------------------------------------------


def test_sums_are_in_float64_but_on_mps():
    x = torch.tensor([1.0, 2.0])
    assert widened(x).dtype == torch.float64
    on_mps = SimpleNamespace(device=torch.device("mps"), float=lambda: "float32", double=lambda: "float64")
    assert widened(on_mps) == "float32"


def test_what_computes_on_a_device_asks_for_float64_by_widened_alone():
    """MPS has none. Exceptions: behind `.cpu()` and the angles of rotary, which are on the CPU there."""
    package, found = Path(__file__).parents[1] / "minirlhf", []
    for folder in ("models", "rewards", "builtin", "rl", "ppo.py", "tensors.py"):
        for file in [package / folder] if folder.endswith(".py") else sorted((package / folder).glob("*.py")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                if re.search(r"(?<!\.cpu\(\))\.double\(\)", line):
                    found.append((file.stem, line.strip().partition(" ")[0]))
    assert found == [("attention", "angles"), ("tensors", "return")]
