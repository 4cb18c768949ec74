"""States with tensors: packed into named tensors and plain numbers, and restored to the bit."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.errors import CheckpointError, DivergedError
from minirlhf.models.optimizer import MOMENTS, AdamW
from minirlhf.store.weights import restore


def whole(value: Any) -> int:
    """A count as JSON has it, or ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def check_finite(tensors: dict[str, Tensor], where: str, todo: str) -> None:
    """Weights that are no longer numbers are not written over those that are (DivergedError)."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(f"{name} is not finite", where, todo)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as flat names: INDEX.exp_avg, INDEX.exp_avg_sq, INDEX.step."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, parameter in enumerate(parameters_of(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], where: Path) -> None:
    """Put back what `optimizer_tensors` gave: of a parameter everything or nothing, moments of its shape and dtype, all
    finite."""
    parameters = parameters_of(optimizer)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        shapes = {"step": torch.Size()} | ({} if parameter is None else dict.fromkeys(MOMENTS, parameter.shape))
        if parameter is None or shapes.get(key) != tensor.shape or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} does not fit the optimizer", str(where), "use another checkpoint")
        dtype = torch.float32 if key == "step" else parameter.dtype
        state.setdefault(parameter, {})[key] = tensor.to(parameter.device, dtype)
    if any(len(entry) != 1 + len(MOMENTS) for entry in state.values()):
        raise CheckpointError("the optimizer's state is incomplete", str(where), "use another checkpoint")
    optimizer.state.clear()
    optimizer.state.update(state)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, in the order of the groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def restore_schedule(schedule: LambdaLR, epoch: int) -> None:
    """Put the schedule at an iteration: LambdaLR computes the rates from its counter alone."""
    rates = [base * function(epoch) for base, function in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    counters = {"last_epoch": epoch, "_step_count": epoch + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | counters)


def taken(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) of a stage's state."""
    tensors, numbers = dict[str, Tensor](), dict[str, Any]()
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, LambdaLR):
            numbers[field.name] = value.last_epoch
        elif isinstance(value, float):
            numbers[field.name] = value.hex()
        elif isinstance(value, int):
            numbers[field.name] = value
        else:
            # A copy each: safetensors refuses tensors that share their memory.
            tensors |= {f"{field.name}/{name}": t.detach().cpu().clone() for name, t in _tensors(value).items()}
    return tensors, numbers


def _tensors(value: Any) -> dict[str, Tensor]:
    if isinstance(value, nn.Module):
        return value.state_dict()
    found: dict[str, Tensor] = optimizer_tensors(value) if isinstance(value, AdamW) else value
    return found


def put(state: Any, tensors: dict[str, Tensor], numbers: dict[str, Any], where: Path) -> None:
    """What `taken` took, back (CheckpointError if it does not fit)."""
    like = next(p for f in fields(state) if isinstance(m := getattr(state, f.name), nn.Module) for p in m.parameters())
    for field in fields(state):
        value = getattr(state, field.name)
        own = {name[len(field.name) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{field.name}/")}
        try:
            if isinstance(value, nn.Module):
                restore(value, own, where)
            elif isinstance(value, AdamW):
                restore_optimizer(value, own, where)
            elif isinstance(value, LambdaLR):
                restore_schedule(value, whole(numbers[field.name]))
            elif isinstance(value, float):
                setattr(state, field.name, float.fromhex(numbers[field.name]))
            elif isinstance(value, int):
                setattr(state, field.name, whole(numbers[field.name]))
            else:
                setattr(state, field.name, {name: t.to(like.device) for name, t in own.items()})
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            raise CheckpointError(f"{field.name} is not as it was ({fault})", str(where), "remove it") from None
