"""Checks of KL estimators, advantage functions and policy losses, on ragged masks with NaN behind them.

They find out whether masked positions reach a result, whether rows are treated alike, and whether the gradient is
finite. Not here: whether an estimator estimates the right thing (`minirlhf audit`).
"""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from minirlhf.authoring.finding import SAME, Finding
from minirlhf.authoring.options import empty_options, options_needed
from minirlhf.components.component import Built
from minirlhf.errors import UserError
from minirlhf.rl.terms import AdvantageInputs, KLInputs, LossInputs
from minirlhf.streams import generator


def check_estimator(built: Built) -> Iterator[Finding]:
    """Yield contract, padding, width, order, gradient (not for advantages: the loop takes none) and time.

    Raises UsageError if an option must be given.
    """
    inputs = _inputs()
    started = perf_counter()
    try:
        plain = _result(built, inputs)
    except UserError as fault:
        empty = empty_options(built.component, built.options)
        if empty and isinstance(fault.__cause__, ValueError):
            raise options_needed(built.component, empty, fault) from fault
        yield Finding("contract", False, str(fault))
        return
    seconds, mask = perf_counter() - started, inputs["mask"]
    yield Finding("contract", True, f"a finite number a token of {tuple(mask.shape)}")
    width = mask.shape[1]
    poisoned = {name: _poisoned(value, mask) for name, value in inputs.items()}
    wider = {name: _widened(value, width) for name, value in inputs.items()}
    flipped = {name: value.flip(0) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    # name of the check -> changed inputs, how to undo the change in the result, what was changed, the remedy
    variants: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], str, str]] = {
        "padding": (poisoned, lambda x: x, "NaN where the mask is False", "use torch.where(mask, ...), not * mask"),
        "width": (wider, lambda x: x[:, :width], "two more masked tokens", "take sums and means over the mask"),
        "order": (flipped, lambda x: x.flip(0), "the rows in another order", "treat all rows alike"),
    }
    for name, (changed, undo, what, todo) in variants.items():
        try:
            other = undo(_result(built, changed))
        except UserError as fault:
            yield Finding(name, False, f"{what}: {fault}", todo)
            continue
        off = float((other - plain)[mask].abs().max())
        yield Finding(name, off <= SAME, f"{what}: off by {off:.1e}", todo)
    if built.component.kind in ("kl", "loss"):
        yield _gradient_finding(built, poisoned)
    yield Finding("time", True, f"{1000 * seconds / len(mask):.2f} ms a response")


def _gradient_finding(built: Built, inputs: dict[str, Any]) -> Finding:
    """Finding that the gradient with respect to logprobs and log_dist is finite on the mask and not 0 everywhere.

    The inputs have NaN behind the mask: torch.where hides a NaN in the forward pass, but the gradient of what stands
    inside it can still be NaN * 0 = NaN.
    """
    logprobs = inputs["logprobs"].detach().requires_grad_(True)
    log_dist = inputs["log_dist"].detach().requires_grad_(True)
    try:
        total = _result(built, inputs | {"logprobs": logprobs, "log_dist": log_dist}, grad=True).sum()
    except UserError as fault:
        return Finding("gradient", False, f"NaN where the mask is False: {fault}", "use torch.where(mask, ...)")
    todo = "compute from logprobs or log_dist, and change no tensor in place"
    try:
        gradients = torch.autograd.grad(total, [logprobs, log_dist], allow_unused=True)
    except RuntimeError as fault:  # torch raises it for a result without a gradient, or inputs changed in place
        return Finding("gradient", False, str(fault).partition("\n")[0], todo)
    mask = inputs["mask"]
    real = [g[mask] for g in gradients if g is not None]
    finite = bool(real) and all(bool(g.isfinite().all()) for g in real)
    reached = any(bool((g != 0).any()) for g in real)
    if not finite:
        return Finding("gradient", False, "not finite on the mask", "use torch.where before exp, log and divisions")
    return Finding("gradient", reached, "finite" if reached else "0 everywhere", todo)


def _result(built: Built, inputs: dict[str, Any], *, grad: bool = False) -> Tensor:
    """Call the component as the loop does, which checks its result: (B,R), 0 at padding; detached unless `grad`."""
    if not grad and built.component.kind != "advantage":
        names = ("logprobs", "log_dist")
        inputs = inputs | {name: inputs[name].detach().requires_grad_(True) for name in names}
    result = built(inputs)
    checked: Tensor = result[0] if built.component.kind == "loss" else result
    return checked if grad else checked.detach()


def _inputs() -> dict[str, Any]:
    """All inputs that an estimator may name: B = 6 responses of 1 to R = 5 tokens, V = 7, three groups of two; float64.

    One response has a single token, since a standard deviation or a division by n - 1 fails there first.
    """
    g = generator(0, "testing", 0)
    rows, width, words = 6, 5, 7
    mask = torch.arange(width) < torch.tensor([[5], [1], [3], [5], [2], [4]])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    log_dist, ref_log_dist = (normal(rows, width, words).log_softmax(-1) for _ in range(2))  # (B,R,V)
    ids = torch.randint(words, (rows, width, 1), generator=g)
    logprobs, ref_logprobs = (x.gather(2, ids).squeeze(2) for x in (log_dist, ref_log_dist))  # (B,R)
    scores = normal(rows)
    last = torch.arange(width) == mask.sum(dim=1, keepdim=True) - 1
    old_logprobs = logprobs + 0.1 * normal(rows, width)
    values, advantages, kl = normal(rows, width), normal(rows, width), normal(rows, width).abs()
    rewards = torch.where(last, scores.unsqueeze(1), 0.1 * normal(rows, width))
    advantage_inputs = AdvantageInputs(
        rewards=rewards,
        values=values,
        mask=mask,
        scores=scores,
        greedy_scores=normal(rows),
        group=torch.tensor([0, 0, 1, 1, 2, 2]),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        kl=kl,
        terminated=torch.tensor([True, True, False, True, True, False]),
        bootstrap_values=normal(rows),
    )
    kl_inputs = KLInputs(logprobs, old_logprobs, ref_logprobs, mask, log_dist, ref_log_dist)
    loss_inputs = LossInputs(logprobs, old_logprobs, ref_logprobs, advantages, mask, 0.5)
    return vars(kl_inputs) | vars(advantage_inputs) | vars(loss_inputs)


def _poisoned(value: Any, mask: Tensor) -> Any:
    """NaN where the mask is False, in every input that has a number for each token; other inputs as they are."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.dtype == torch.bool:
        return value
    return torch.where(mask if value.ndim == 2 else mask.unsqueeze(2), value, torch.nan)


def _widened(value: Any, width: int) -> Any:
    """Two more masked tokens at the end of every input of this width: (B,R,...) -> (B,R+2,...)."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != width:
        return value
    return torch.cat([value, torch.zeros_like(value[:, :2])], dim=1)
