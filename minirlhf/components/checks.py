"""Checks of a component's result, made once at the boundary: shapes, dtypes, devices, finite numbers.

Not here: whose fault an exception is (guard.py), and adding rewards up (rewards/call.py). torch is imported only when a
tensor is checked.
"""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from minirlhf.components.guard import describe_value
from minirlhf.errors import DivergedError, PluginError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 3.4028234663852886e38  # largest float32: the loop's tensors must be able to hold a score
LARGEST_SCORE = 1e15  # of a weighted score: float32 must hold its square, summed over the tokens and the parameters

# A checked result of a reward for one completion: a score, one number a token, or None = does not apply.
RowScore = float | list[float] | None
# Checks that would wait for a device. They are only made if a loss turns out not to be finite.
DeferredChecks = list[Callable[[], None]]


class Checked(Protocol):
    """Component whose result is checked: its name in messages, its inputs, and its errors (`component.Built`)."""

    @property
    def title(self) -> str: ...

    def names(self, name: str) -> bool: ...

    def guarded(self) -> AbstractContextManager[None]: ...

    def error(self, what: str, todo: str) -> PluginError: ...


def check_tensor(
    built: Checked,
    result: Any,
    mask: "Tensor",
    given: Mapping[str, Any] | None = None,
    later: DeferredChecks | None = None,
) -> "Tensor":
    """Check the (B,R) tensor of a KL estimator, advantage function or policy loss: type, shape, device, finite numbers.

    Returns it with zeros where mask (B,R) is False, so that junk there (NaN included) has no effect. given: inputs of
    the call. Raises PluginError with the first bad index, or DivergedError if one of the inputs was not finite already:
    then the model diverged and the plugin is not to blame. With `later` the numbers are not read now, which would wait
    for the device: a check of them is appended to it.
    """
    import torch

    todo = "return a float tensor of the shape of the mask"
    expected = f"expected a float tensor of shape {tuple(mask.shape)}"
    if not isinstance(result, torch.Tensor):
        raise built.error(f"returned a wrong result ({expected}, got {describe_value(result)})", todo)
    if result.shape != mask.shape or not result.is_floating_point():
        got = f"{str(result.dtype).removeprefix('torch.')} of shape {tuple(result.shape)}"
        raise built.error(f"returned a wrong result ({expected}, got {got})", todo)
    if result.device != mask.device:
        raise built.error(f"returned a tensor on {result.device} (expected {mask.device})", "keep the inputs' device")
    kept = torch.where(mask, result, torch.zeros_like(result))
    if later is None:
        _check_finite(built, kept, mask, given or {})
    else:
        small = {
            n: v.detach() for n, v in (given or {}).items() if isinstance(v, torch.Tensor) and v.shape == mask.shape
        }
        later.append(functools.partial(_check_finite, built, kept.detach(), mask, small))
    return kept


def _check_finite(built: Checked, kept: "Tensor", mask: "Tensor", given: Mapping[str, Any]) -> None:
    """Raise PluginError for a number that is not finite, DivergedError if an input was not finite already."""
    import torch

    if bool(kept.isfinite().all()):
        return
    for name, value in given.items():
        if built.names(name) and isinstance(value, torch.Tensor) and not _finite_on(value, mask):
            raise DivergedError(f"{name} is not finite", built.title, "lower the learning rate")
    row, t = (~kept.isfinite()).nonzero()[0].tolist()
    got = f"expected a finite number, got {kept[row, t].item()}"
    raise built.error(f"returned a wrong value at index ({row}, {t}) ({got})", "look at its divisions, exp and log")


def check_gradient(built: Checked, inputs: Iterable[Any], result: Any) -> None:
    """Refuse a result that is cut off from inputs with a gradient: it would train nothing, silently (PluginError)."""
    import torch

    value = result[0] if isinstance(result, tuple) and result else result
    if not torch.is_grad_enabled() or not isinstance(value, torch.Tensor) or value.requires_grad:
        return
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
        raise built.error(
            "returned a tensor without a gradient (expected one that depends on logprobs or log_dist)",
            "do not use .detach(), .data, .item() or no_grad on the way from the input to the result",
        )


def check_loss(
    built: Checked,
    result: Any,
    mask: "Tensor",
    given: Mapping[str, Any] | None = None,
    later: DeferredChecks | None = None,
) -> tuple["Tensor", dict[str, "Tensor"]]:
    """Check the result of a policy loss: a (B,R) tensor, or (that, {metric: (B,R) or 0-d tensor or number}).

    Returns (the loss as check_tensor returns it, the metrics, detached). Raises as check_tensor does.
    """
    import torch

    values, logged = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    todo = "return the loss (B,R), or (loss, {name: (B,R) or 0-d tensor})"
    if not isinstance(logged, Mapping) or not all(isinstance(name, str) for name in logged):
        raise built.error(
            f"returned wrong metrics (expected a dict of tensors by name, got {describe_value(logged)})", todo
        )
    metrics = {}
    for name, value in logged.items():
        with built.guarded():
            tensor = torch.tensor(float(value), device=mask.device) if isinstance(value, numbers.Real) else value
        if not isinstance(tensor, torch.Tensor) or tensor.shape not in (mask.shape, torch.Size()):
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else describe_value(tensor)
            raise built.error(
                f"returned a wrong metric {name!r} (expected shape {tuple(mask.shape)} or (), got {got})",
                todo,
            )
        metrics[name] = tensor.detach()
    return check_tensor(built, values, mask, given, later), metrics


def check_scores(built: Checked, result: Any, count: int, completion_ids: Sequence[Sequence[int]]) -> list[RowScore]:
    """Check the result of a reward for `count` completions: a float, None or a float a token for each.

    Accepted: a list or tuple, or anything with tolist() (tensors on any device, numpy arrays), of numbers
    that float32 can hold (floats, ints, bools, 0-d tensors), of None = does not apply, or of lists of
    numbers, one a token of completion_ids. Refused, with the first bad index: everything else, strings and
    NaN in particular.
    """
    todo = "return one float or None for each completion, or one float for each token of its completion_ids"
    expected = f"expected {count} values, one for each completion"
    with built.guarded():
        rows = plain_lists(result)
    if not isinstance(rows, list):
        hint = "; does the function end without a return?" if rows is None else ""
        raise built.error(f"returned a wrong result ({expected}, got {describe_value(rows)}{hint})", todo)
    if len(rows) != count:
        first = f"index {len(rows)} is missing" if len(rows) < count else f"index {count} is one too many"
        raise built.error(f"returned a wrong number of values ({expected}, got {len(rows)}: {first})", todo)
    checked: list[RowScore] = []
    for index, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        try:
            checked.append(_row_score(row, len(ids)))
        except ValueError as fault:
            raise built.error(f"returned a wrong value at index {index} ({fault})", todo) from None
    return checked


def finite_number(value: Any) -> float:
    """Convert a Python, numpy or 0-d tensor number to a float; ValueError if it is not finite in float32."""
    plain = plain_lists(value)
    try:
        if isinstance(plain, numbers.Real) and abs(number := float(plain)) <= LARGEST:
            return number
    except (OverflowError, TypeError, ValueError):  # an int beyond floats, a number that is none
        pass
    raise ValueError(f"expected a finite number, got {describe_value(plain)}")


def _row_score(value: Any, tokens: int) -> RowScore:
    """Result of a reward for one completion of `tokens` tokens, checked (ValueError)."""
    if value is None:
        return None
    if not isinstance(value, list):
        try:
            return finite_number(value)
        except ValueError:
            raise ValueError(f"expected a finite number or None, got {describe_value(value)}") from None
    if len(value) != tokens:
        raise ValueError(f"expected a number, or {tokens} numbers for its {tokens} tokens, got {len(value)} values")
    numbers_: list[float] = []
    for t, item in enumerate(value):
        try:
            numbers_.append(finite_number(item))
        except ValueError as fault:
            raise ValueError(f"token {t}: {fault}") from None
    return numbers_


def plain_lists(value: Any) -> Any:
    """Convert tensors, arrays, tuples and lists of them to plain lists; return anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _finite_on(value: "Tensor", mask: "Tensor") -> bool:
    """True if a tensor (B,), (B,R) or (B,R,V) is finite on the mask; -inf in a distribution is a banned token."""
    import torch

    if value.ndim == 1 or value.shape[: mask.ndim] != mask.shape:
        return bool(value.isfinite().all())
    if value.ndim == 3:
        return not bool((value[mask].isnan() | value[mask].isposinf()).any())
    return bool(torch.where(mask, value, torch.zeros_like(value)).isfinite().all())
