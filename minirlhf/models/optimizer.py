"""AdamW as every stage uses it: torch's own arithmetic, fused, without torch's compiler.

The first use of a `torch.optim.AdamW` imports `torch._dynamo`: more than a second and 70 MB of every run, for a
compiler that nothing here asks for. So this is an optimizer whose few methods call torch's functional AdamW
themselves. Its numbers are held against `torch.optim.AdamW`'s, bit by bit, in tests/test_optimizer.py.

Not here: amsgrad, hooks, closures, learning-rate schedules (torch's take this optimizer as any other).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's m and v; with "step" they are the whole state of a parameter


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay: theta <- (1 - lr wd) theta - lr m_hat / (sqrt(v_hat) + eps).

    params: parameters, or groups of {"params", and what differs}. A parameter without a gradient is left alone.
    Source: Loshchilov and Hutter, 1711.05101.
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append(self.defaults | param_group | {"params": list(param_group["params"])})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            states = [self.state[p] or self._begin(p) for p in learning]
            averages, squares, steps = ([state[name] for state in states] for name in (*MOMENTS, "step"))
            beta1, beta2 = group["betas"]
            adamw(
                learning, [p.grad for p in learning], averages, squares, [], steps, fused=True, amsgrad=False,
                beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                maximize=False,
            )  # fmt: skip

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments of 0 where nothing was learned yet."""
        state = {name: torch.zeros_like(parameter) for name in MOMENTS}
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        self.state[parameter] = state
        return state

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
