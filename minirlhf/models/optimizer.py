"""AdamW for every stage: torch's own arithmetic, fused, without torch's compiler.

The first use of a `torch.optim.AdamW` imports `torch._dynamo`: more than a second and 70 MB of every run, for a
compiler that nothing here uses. This optimiser therefore calls torch's functional AdamW itself.
tests/models/test_optimizer.py compares it with `torch.optim.AdamW`, bit by bit.

Not here: amsgrad, hooks, closures, learning-rate schedules (torch's schedulers accept this optimiser like any other).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

SMALLEST_STEP = 1e-9  # half a unit in the last place of a float32 of 0.02: smaller steps leave such a weight as it is
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's m and v; with "step" they are the whole state of a parameter


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay: theta <- (1 - lr wd) theta - lr m_hat / (sqrt(v_hat) + eps).

    m_hat and v_hat are running means of the gradient and of its square, divided by 1 - beta^step, since both start at
    0. params: parameters, or groups {"params": [...], and the settings that differ}. A parameter without a gradient
    stays as it is, weight decay included. Source: Loshchilov and Hutter, 1711.05101.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        # torch's schedules warn if they move before the first step, which an iteration that teaches nothing leaves out.
        self._opt_called = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Append a group; settings that it lacks are the defaults. (torch's own method imports the compiler.)"""
        self.param_groups.append(self.defaults | param_group | {"params": list(param_group["params"])})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure
        """Update every parameter that has a gradient, in place."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            # torch's `state` is a defaultdict: an empty dict, which is false, means that p has learned nothing yet.
            states = [self.state[p] or self._begin(p) for p in learning]
            averages, squares, steps = ([state[name] for state in states] for name in (*MOMENTS, "step"))
            beta1, beta2 = group["betas"]
            # fused: one kernel goes over all parameters, instead of a dozen small operations for each.
            adamw(
                learning, [p.grad for p in learning], averages, squares, [], steps, fused=True, amsgrad=False,
                beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                maximize=False,
            )  # fmt: skip
            # The fused kernel does not count its writes, and copies in another dtype (lora.py) are kept by that count.
            torch.autograd.graph.increment_version(learning)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Begin the state of a parameter: both moments 0, and step 0, a tensor because the fused kernel counts it."""
        # Names and types are those of torch's AdamW, so that a saved state can be read by either.
        state = {name: torch.zeros_like(parameter) for name in MOMENTS}
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        self.state[parameter] = state
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients: None and not 0, so that a parameter that gets none later is left alone by `step`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def steps_too_small(section: str, lr: float, grad_clip: float, eps: float = 1e-8) -> list[str]:
    """Sentence for the user if no step can change a weight of usual size (SMALLEST_STEP): none, or one.

    A step of Adam is about lr m / (sqrt(v) + eps) with m and sqrt(v) at most grad_clip: lr min(1, grad_clip / eps).
    """
    if lr * min(1.0, grad_clip / eps) >= SMALLEST_STEP:
        return []
    cause = (
        f"lr = {lr:g} is so small"
        if lr < SMALLEST_STEP
        else f"grad_clip = {grad_clip:g} is so far below Adam's epsilon, {eps:g},"
    )
    return [f"{section}.{cause} that no step changes a weight in float32, so that nothing is learned; raise it"]
