"""The KL coefficient: a trajectory by hand, the clip on either side, and a fixed one that never moves."""

import pytest

from minirlhf.rl.controllers import KLController, Penalty


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
