"""The KL coefficient: a trajectory by hand, the clip on either side, and a fixed one that never moves."""

import math

import pytest

from minirlhf.config.schema import KLConfig
from minirlhf.rl.controllers import LARGEST, SMALLEST, KLController, Penalty


def test_the_adaptive_trajectory_by_hand():
    """target 6, horizon 1000, n = 100 responses: beta <- beta (1 + clip(KL/6 - 1, -0.2, 0.2) / 10)."""
    controller = KLController(0.1, target=6.0, horizon=1000)
    steps = [
        (9.0, 100, 0.102),  # 9/6 - 1 = 0.5, clipped to 0.2: x 1.02
        (6.6, 100, 0.10302),  # 0.1: x 1.01
        (6.0, 100, 0.10302),  # on target: stays
        (5.7, 100, 0.1025049),  # -0.05: x 0.995
        (-3.0, 100, 0.100454802),  # -1.5, clipped to -0.2: x 0.98 (k1 of a rollout may be negative)
        (9.0, 500, 0.1105002822),  # five times the responses, five times the step: x 1.1
    ]
    for kl, responses, beta in steps:
        controller.update(kl, responses)
        assert controller.beta == pytest.approx(beta, rel=1e-12)


def test_a_fixed_beta_stays_bit_for_bit():
    controller = KLController(0.05)
    for kl in (0.0, 1e9, -5.0, float("nan")):
        controller.update(kl, 64)
    assert controller.beta == 0.05


def test_the_penalty_halves_below_the_target_and_doubles_above():
    """Target 0.03: halved below 0.02, doubled above 0.045, unmoved between and on the borders."""
    penalty = Penalty(1.0, target=0.03)
    for kl, beta in [(0.019, 0.5), (0.02, 0.5), (0.045, 0.5), (0.046, 1.0), (9.0, 2.0), (0.0, 1.0)]:
        penalty.update(kl)
        assert penalty.beta == beta
    fixed = Penalty(0.7)
    for kl in (0.0, 1e9, float("nan")):
        fixed.update(kl)
    assert fixed.beta == 0.7


@pytest.mark.parametrize("horizon", [1, 2, 64, 319])
def test_a_rollout_longer_than_the_horizon_moves_beta_by_a_fifth_and_never_below_zero(horizon):
    """n = 320 responses; 1 - 0.2 x 320/horizon would be 0 or negative from a horizon of 64 down."""
    controller = KLController(0.1, target=6.0, horizon=horizon)
    for kl, beta in [(0.0, 0.08), (0.0, 0.064), (99.0, 0.0768)]:
        controller.update(kl, 320)
        assert controller.beta == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("rollouts", [1, 2, 10, 1000])
def test_over_one_horizon_of_responses_beta_changes_by_a_fifth_and_not_e_fold(rollouts):
    """(1 + 0.2/k)^k is 1.2 for one rollout and below e^0.2 = 1.2214 for k; (1 - 0.2/k)^k is 0.8 and below e^-0.2."""
    for kl, one, many in [(99.0, 1.2, math.exp(0.2)), (0.0, 0.8, math.exp(-0.2))]:
        controller = KLController(1.0, target=6.0, horizon=1000)
        for _ in range(rollouts):
            controller.update(kl, 1000 // rollouts)
        assert min(one, many) - 1e-12 <= controller.beta <= max(one, many) + 1e-12
        assert controller.beta == pytest.approx((1 + (one - 1) / rollouts) ** rollouts, rel=1e-9)
    about = KLConfig.model_fields["horizon"].description
    assert "by a factor of 0.8 to 1.22 at most" in about


@pytest.mark.parametrize("low", [0.0, -50.0])
def test_a_steered_coefficient_can_always_come_back(low):
    """Multiplied by 0.8 (or halved) for ever a float becomes 0, and 0 stays 0; by 1.2 (or doubled) it overflows."""
    for steered, step in [
        (KLController(0.1, target=6.0, horizon=1), lambda c, kl: c.update(kl, 8)),
        (Penalty(1.0, target=0.03), lambda c, kl: c.update(kl)),
    ]:
        for kl, bound in [(low, SMALLEST), (99.0, LARGEST), (low, SMALLEST)]:
            for _ in range(5000):
                step(steered, kl)
            assert steered.beta == bound
