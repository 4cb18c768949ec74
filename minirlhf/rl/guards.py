"""Guards of the loop: numbers that are not finite, a policy that is not the one that sampled, metrics that are taken.

`check_experience` raises before anything learns from the numbers; `check_same_policy`, after the epochs, reports a bug.
Not here: checks of what plugins return (components/checks.py), and alarms, which change nothing (alarms.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from minirlhf.components.component import Built
from minirlhf.errors import DivergedError, UsageError
from minirlhf.rl.experience import PER_TOKEN, Experience

LARGEST_FIRST_LOG_RATIO = 1e-3  # in float32 rounding gives 1e-5 at most
MOST_ROUNDING = 0.2  # nats, in bfloat16: with more, the ratios that a clip of 0.2 cuts are mostly rounding
OWN_METRICS = (
    "approxkl",
    "clamped",
    "entropy",
    "logprob_grad",
)  # policy/NAME_avg of the loop; `ppo.target_kl` reads the first


def check_experience(experience: Experience, step: int) -> None:
    """Raise DivergedError with the name of a tensor that holds NaN or infinity on the mask, before anything learns."""
    fine = torch.stack([torch.where(experience.mask, getattr(experience, n), 0.0).isfinite().all() for n in PER_TOKEN])
    for name, ok in zip(PER_TOKEN, fine.tolist(), strict=True):  # one wait for the device
        if not ok:
            raise diverged(f"{name} is not finite", step)


def check_same_policy(first_log_ratio: float, step: int, precision: str = "float32") -> None:
    """Check that the policy of the first update is the one that sampled: its ratio is 1 but for rounding.

    first_log_ratio: largest |log ratio| over the tokens of the first minibatch, nats. A larger one means that sampling,
    scoring and training disagree about the policy's distribution (dropout, another temperature, another mask), and then
    every ratio would be wrong: a bug, RuntimeError. In bfloat16 rounding alone can be more, which the metric reports; a
    model that rounds by more than MOST_ROUNDING cannot learn in it: UsageError.
    """
    if precision != "float32" and not first_log_ratio <= MOST_ROUNDING:
        what = f"{precision} moves log-probs by {first_log_ratio:.2g} nats, iteration {step + 1}"
        raise UsageError(what, "ppo.precision, model.dtype", "use float32 with this model")
    if precision == "float32" and first_log_ratio > LARGEST_FIRST_LOG_RATIO:
        raise RuntimeError(f"iteration {step + 1}: |log ratio| = {first_log_ratio} before any update; expected < 1e-5")


def check_own_names(loss: Built, logged: Mapping[str, Tensor]) -> None:
    """Raise PluginError if a policy loss logs a metric under a name of the loop's own, which it would replace."""
    for name in logged:
        if name in OWN_METRICS:
            what = f"logs a metric {name!r}, but policy/{name}_avg is a metric of the loop"
            raise loss.error(what, f"log it under another name, such as own_{name}")


def diverged(what: str, step: int) -> DivergedError:
    """DivergedError of the iteration after `step`, with advice."""
    return DivergedError(
        what, f"iteration {step + 1}", "the weights are as before this update; try a lower ppo.lr or a higher kl.coef"
    )
