"""Student's t: quantiles against the tables, intervals by hand, and what they cover, by simulation."""

import math

import pytest
import torch

from minirlhf.stages.intervals import count_that_tells, half_width, t_interval, t_probability, t_quantile

# Table of the two-sided 95 % quantiles, as in every book of statistics.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_the_quantiles_are_those_of_the_tables(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_quantiles_that_have_a_closed_form():
    """One degree of freedom is Cauchy's distribution: tan(0.475 pi). Two: P = t / sqrt(2 + t^2), so t^2 = 2 P^2 / (1 -
    P^2). Many: the normal one."""
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_quantile(2) == pytest.approx(math.sqrt(2 * 0.95**2 / (1 - 0.95**2)), rel=1e-12)
    assert t_quantile(10**9) == pytest.approx(1.959964, abs=3e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10])
def test_the_probability_is_the_integral_of_the_density(freedom):
    """With t = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1)."""
    steps = 20_000
    angles = (torch.arange(steps, dtype=torch.float64) + 0.5) * (math.pi / 2 / steps)
    density = angles.cos() ** (freedom - 1)
    for angle in (0.3, 1.0, 1.5):
        share = float(density[angles < angle].sum() / density.sum())
        assert t_probability(angle, freedom) == pytest.approx(share, abs=1e-3)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3)."""
    low, high = t_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert t_interval(torch.full((9,), 0.3, dtype=torch.float64)) == pytest.approx([0.3, 0.3])
    for known in ([], [0.3]):  # one number says nothing of its error
        assert t_interval(torch.tensor(known, dtype=torch.float64)) is None
    rows = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 4.0]])
    assert half_width(rows).tolist() == pytest.approx([4.3027 / 3**0.5, 2 * 4.3027 / 3**0.5], abs=1e-4)


def test_the_number_of_values_that_tells_is_the_smallest():
    """t / sqrt(n) at std 1 is 2.48, 1.59, 1.24, 1.05, 0.92 for n = 3 to 7."""
    found = [count_that_tells(mean, 1.0) for mean in (2.5, 2.4, 1.6, 1.5, 1.0, -1.0)]
    assert found == [3, 4, 4, 5, 7, 7]
    assert count_that_tells(1.0, 0.0) == 2
    assert count_that_tells(0.0, 0.0) is count_that_tells(0.0, 1.0) is count_that_tells(0.06, 1.0) is None
    assert count_that_tells(0.063, 1.0) == 971  # 1.9624 / 0.063, squared: 970.3


# ---- cover -----------------------------------------------------------------------------------------------------

DRAWS = 100_000


def normal(random, n):
    return torch.randn(DRAWS, n, generator=random, dtype=torch.float64)


def exponential(random, n):
    """Mean 1, skewness 2."""
    return -(1 - torch.rand(DRAWS, n, generator=random, dtype=torch.float64)).log()


def cover(draw, mean, n, width=half_width):
    """Share of the intervals of n drawn values that hold the mean; its standard error is at most 0.001."""
    values = draw(torch.Generator().manual_seed(n), n)
    return float(((values.mean(dim=1) - mean).abs() <= width(values)).double().mean())


def difference(a, b, scale):
    """Differences of pairs: a of the variant, b of the first one, scaled."""
    return lambda random, n: a(random, n) - scale * b(random, n)


# As skewed as the differences of F in 40 seeds of the preset `variance` (1.65), or so: name -> (draw, mean).
SKEWED = {
    "difference of equals, skewness 0": (difference(exponential, exponential, 1.0), 0.0),
    "difference, one spreads a third, skewness 1.64": (difference(exponential, exponential, 1 / 3), 2 / 3),
    "sum of two, skewness 1.41": (difference(exponential, exponential, -1.0), 2.0),
    "lognormal, skewness 1.75": (lambda random, n: (normal(random, n) / 2).exp(), math.exp(1 / 8)),
}
VERY_SKEWED = {
    "exponential, skewness 2": (exponential, 1.0, (0.87, 0.92)),
    "lognormal, skewness 6.2": (lambda random, n: normal(random, n).exp(), math.exp(0.5), (0.80, 0.91)),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_interval_covers_normal_data(n):
    assert 0.945 < cover(normal, 0.0, n) < 0.955


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("name", SKEWED)
def test_the_interval_covers_skewed_data(name, n):
    draw, mean = SKEWED[name]
    share = cover(draw, mean, n)
    print(f"{name}, n = {n}: {share:.1%}")
    assert 0.90 < share < 0.975


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("name", VERY_SKEWED)
def test_data_more_skewed_than_that_are_covered_less_as_the_manual_says(name, n):
    draw, mean, (low, high) = VERY_SKEWED[name]
    share = cover(draw, mean, n)
    print(f"{name}, n = {n}: {share:.1%}")
    assert low < share < high


@pytest.mark.slow
@pytest.mark.parametrize(("n", "said"), [(2, 0.50), (3, 0.75), (5, 0.84), (10, 0.90)])
def test_a_percentile_bootstrap_would_be_too_narrow(n, said):
    """The reason for Student's t. 1,000 resamples of each of 2,000 samples."""
    random = torch.Generator().manual_seed(n)
    values = torch.randn(2000, n, generator=random, dtype=torch.float64)
    picks = torch.randint(n, (2000, 1000 * n), generator=random)
    means = values.gather(1, picks).view(2000, 1000, n).mean(dim=2)
    low, high = means.quantile(0.025, dim=1), means.quantile(0.975, dim=1)
    # The share of 2,000 samples has a standard error of at most 0.011, and what is said is rounded to 0.01.
    assert float(((low <= 0) & (high >= 0)).double().mean()) == pytest.approx(said, abs=0.03)
