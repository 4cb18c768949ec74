"""The one codec of states: a dataclass with models, optimiser, schedule and numbers, as files and back to the bit.

    FIELD.safetensors    for each field with tensors: a module, an optimiser, or a dictionary of tensors
    state.json           "format", and every other field: floats as float.hex(), counts, nested dataclasses of these,
                         a schedule as its counter, a frozen reference as its hash

Checkpoints of runs (checkpoint.py) and of unfinished stages (progress.py) are both written and read here. Nothing in
the files is trusted: names, shapes, dtypes and finiteness are checked before anything changes. Not here: complete
directories and manifests (files.py), and which directory is the newest (checkpoint.py).
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.errors import CheckpointError, DivergedError
from minirlhf.models.optimizer import MOMENTS
from minirlhf.store.files import read_json, write_json
from minirlhf.store.weights import check_fits, read_tensors, save_tensors

STATE = "state.json"
FORMAT = 3  # raise when older files can no longer be read


@runtime_checkable
class Frozen(Protocol):
    """Model that never changes: it is saved as its hash, and compared when a state is restored."""

    hash: str


def write_state(
    directory: Path, state: Any, tensors: Mapping[str, dict[str, Tensor]], facts: Mapping[str, Any]
) -> None:
    """Write a state into a directory, with `facts` beside its numbers in state.json; tensors: `finite_tensors`."""
    for name, found in tensors.items():
        save_tensors(found, directory / f"{name}.safetensors")
    numbers = {name: plain_to_json(value) for name, value in plain_fields(state).items()}
    write_json(directory / STATE, {"format": FORMAT, **numbers, **facts})


def read_facts(directory: Path, todo: str) -> dict[str, Any]:
    """state.json of a directory; CheckpointError, with advice, if it is damaged or of another format."""
    saved = read_json(directory / STATE, CheckpointError)
    if saved.get("format") != FORMAT:
        what = f"made by another version of minirlhf (format {saved.get('format', 1)}, this one reads {FORMAT})"
        raise CheckpointError(what, str(directory), todo)
    return saved


def restore_state(state: Any, directory: Path, saved: Mapping[str, Any], todo: str) -> None:
    """Restore a state from the files of `write_state`; saved: its state.json.

    Raises CheckpointError for anything that does not fit, and then has changed nothing. The state has one optimiser;
    its dictionaries of tensors are empty, or weights of its first module.
    """
    numbers = {}
    for name, value in plain_fields(state).items():
        if isinstance(value, Frozen) and saved.get(name) != value.hash:
            what = f"the {name} is {value.hash[:12]}, the checkpoint was made against {str(saved.get(name))[:12]}"
            raise CheckpointError(what, str(directory), f"resume with the run's own {name}")
        try:
            numbers[name] = plain_from_json(value, saved[name])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            what = f"{name} is not as it was saved ({type(fault).__name__}: {fault})"
            raise CheckpointError(what, str(directory / STATE), todo) from None
    named = [field.name for field in fields(state) if field.name not in numbers]
    files = {name: directory / f"{name}.safetensors" for name in named}
    tensors = {name: read_tensors(file) for name, file in files.items()}
    model = modules_of(state)[0]
    for name, found in tensors.items():
        value = getattr(state, name)
        if isinstance(value, nn.Module):
            check_fits(value, found, files[name])
        elif isinstance(value, dict) and found:  # weights of the model, as they were at another step
            check_fits(model, found, files[name])
    # The optimiser checks itself, so it comes first: after it nothing is refused any more.
    for name, found in sorted(tensors.items(), key=lambda item: not isinstance(getattr(state, item[0]), Optimizer)):
        value = getattr(state, name)
        if isinstance(value, Optimizer):
            restore_optimizer(value, found, files[name])
        elif isinstance(value, nn.Module):
            value.load_state_dict(found)
        else:
            device = next(model.parameters()).device
            setattr(state, name, {key: tensor.to(device) for key, tensor in found.items()})
    for name, number in numbers.items():
        value = getattr(state, name)
        if isinstance(value, LambdaLR):
            restore_schedule(value, number)
        elif not isinstance(value, Frozen):
            setattr(state, name, number)


def tensors_of(state: Any) -> dict[str, dict[str, Tensor]]:
    """Tensors of each field that has some, on the CPU: {field: {name: tensor}}."""
    found = {}
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, nn.Module):
            found[field.name] = {name: t.detach().cpu().contiguous() for name, t in value.state_dict().items()}
        elif isinstance(value, Optimizer):
            found[field.name] = optimizer_tensors(value)
        elif isinstance(value, dict):
            # A copy each: safetensors refuses tensors that share their memory, as the best weights so far may do.
            found[field.name] = {name: t.detach().cpu().clone() for name, t in value.items()}
    return found


def plain_fields(state: Any) -> dict[str, Any]:
    """Fields without tensors: numbers, dataclasses of numbers, schedules and frozen models."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: value for name, value in values.items() if not isinstance(value, nn.Module | Optimizer | dict)}


def modules_of(state: Any) -> list[nn.Module]:
    """Modules among the fields of a state."""
    values = [getattr(state, field.name) for field in fields(state)]
    return [value for value in values if isinstance(value, nn.Module)]


def plain_to_json(value: Any) -> Any:
    """A field without tensors as JSON: floats in hexadecimal, so that they come back to the bit."""
    if isinstance(value, LambdaLR):
        return value.last_epoch
    if isinstance(value, Frozen):
        return value.hash
    if is_dataclass(value):
        return {name: plain_to_json(getattr(value, name)) for name in saved_fields(value)}
    return value.hex() if isinstance(value, float) else value


def plain_from_json(like: Any, saved: Any) -> Any:
    """Reverse of `plain_to_json` for a field that now holds `like`.

    Raises ValueError, KeyError, TypeError, AttributeError or OverflowError if it does not fit.
    """
    if isinstance(like, LambdaLR):
        return checked_count(saved)
    if isinstance(like, Frozen):
        return like.hash
    if is_dataclass(like) and not isinstance(like, type):
        return replace(like, **{n: plain_from_json(getattr(like, n), saved[n]) for n in saved_fields(like)})
    if isinstance(like, float):
        number = float.fromhex(saved)
        if not math.isfinite(number):
            raise ValueError("it is not finite")
        return number
    return checked_count(saved)


def saved_fields(value: Any) -> tuple[str, ...]:
    """Names of the fields of a nested dataclass that are state: those of its SAVED, else all.

    The others are settings. They come from the configuration, and a file must not change them.
    """
    names: tuple[str, ...] = getattr(value, "SAVED", tuple(field.name for field in fields(value)))
    return names


def checked_count(value: Any) -> int:
    """A count from JSON, or ValueError."""
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def finite_tensors(state: Any, where: str, todo: str) -> dict[str, dict[str, Tensor]]:
    """`tensors_of` a state; DivergedError for one that is not finite: it must not replace weights that are."""
    found = tensors_of(state)
    for tensors in found.values():
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise DivergedError(f"{name} is not finite", where, todo)
    return found


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as flat names: INDEX.exp_avg, INDEX.exp_avg_sq, INDEX.step."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, parameter in enumerate(parameters_of(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], where: Path) -> None:
    """Restore what `optimizer_tensors` gave (CheckpointError if it does not fit).

    A parameter has all its entries or none; moments have its shape and are finite. Nothing changes unless all fit.
    """
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
    """Parameters of an optimiser, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def restore_schedule(schedule: LambdaLR, epoch: int) -> None:
    """Set a schedule to an iteration: LambdaLR computes the rates from its counter alone."""
    rates = [base * function(epoch) for base, function in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    counters = {"last_epoch": epoch, "_step_count": epoch + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | counters)
