"""The KL coefficient beta: fixed, or steered towards a target KL.

Units: the target is in nats per *sequence* (KL summed over the tokens of a response, averaged over responses). A
per-token target is a different number by the factor of the response length; targets copied from other projects are
wrong by it when the unit is not said.
"""

from dataclasses import dataclass


@dataclass
class KLController:
    """beta, and how it moves: beta <- beta (1 + clip(KL/target - 1, -0.2, 0.2) n/horizon), once a rollout.

    KL in nats per sequence, n = responses in the rollout, horizon in responses; target None = beta is fixed.
    Source: Ziegler et al., 1909.08593, section 2.2.
    """

    beta: float
    target: float | None = None
    horizon: int = 10000

    def update(self, kl_per_sequence: float, responses: int) -> None:
        if self.target is None:
            return
        error = min(max(kl_per_sequence / self.target - 1.0, -0.2), 0.2)
        self.beta *= 1.0 + error * responses / self.horizon
