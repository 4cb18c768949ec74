"""Controllers: coefficients that the loop steers, of the KL to the reference and of the penalty of N10.

Units: the target of the first is in nats per *sequence* (KL summed over the tokens of a response, averaged over
responses). A per-token target is a different number by the factor of the response length; targets copied from other
projects are wrong by it if the unit is not stated. The target of the penalty is in nats per token.
"""

from dataclasses import dataclass
from typing import ClassVar

# A steered coefficient stays within these bounds. At 0 it could never grow again, because steering multiplies it; a
# negative one would reward the distance that it is there to penalise.
SMALLEST, LARGEST = 1e-8, 1e8


def bounded(beta: float) -> float:
    """Coefficient moved into SMALLEST .. LARGEST."""
    return min(max(beta, SMALLEST), LARGEST)


@dataclass
class KLController:
    """KL coefficient beta, steered once a rollout: beta <- beta (1 + clip(KL/target - 1, -0.2, 0.2) min(n/horizon, 1)).

    KL in nats per sequence; n: responses in the rollout; horizon in responses; target None: beta is fixed. So one
    rollout changes beta by a fifth at most, and all rollouts of one horizon together by a factor of 0.8 (one rollout of
    that size; e^-0.2 = 0.82 for many small ones) to e^0.2 = 1.22.
    Source: Ziegler et al., 1909.08593, section 2.2; there n is far below the horizon, and n/horizon is not bounded:
    from n = 5 horizons on, beta would become 0 or negative.
    """

    SAVED: ClassVar = ("beta",)  # in checkpoints; the others are settings

    beta: float
    target: float | None = None
    horizon: int = 10000

    def update(self, kl_per_sequence: float, responses: int) -> None:
        """Move beta after a rollout of so many responses; KL in nats per sequence."""
        if self.target is None:
            return
        error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
        self.beta = bounded(self.beta * (1.0 + error * min(responses / self.horizon, 1.0)))


@dataclass
class Penalty:
    """Coefficient beta of KL(pi, pi_old) in the loss `ppo_penalty` (N10), steered after the epochs of a rollout.

    Halved if the KL that the epochs have come to is below target / 1.5, doubled if it is above 1.5 target; nats per
    token; target None: fixed.
    Source: Schulman et al., 1707.06347, section 4.
    """

    SAVED: ClassVar = ("beta",)  # in checkpoints; the target is a setting

    beta: float
    target: float | None = None

    def update(self, kl_per_token: float) -> None:
        """Halve, double or keep beta after the epochs of a rollout; KL in nats per token."""
        if self.target is None:
            return
        if kl_per_token < self.target / 1.5:
            self.beta = bounded(self.beta / 2)
        elif kl_per_token > self.target * 1.5:
            self.beta = bounded(self.beta * 2)
