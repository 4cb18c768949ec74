"""Checkpoints: the whole state of a run, each in a directory that is complete or absent.

    checkpoints/step_00000120/  policy.safetensors  optimizer.safetensors  components.safetensors
                                state.json  MANIFEST.json

Weights that are not finite are never written. Nothing in these files is trusted when they are read: see SECURITY.md.
Not here: how a state becomes files (state.py), and what a run compares when it is resumed (pipeline/resume.py).
"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from minirlhf.errors import CheckpointError
from minirlhf.store.files import complete_directory, discard, move_directory, verify
from minirlhf.store.state import STATE, checked_count, finite_tensors, read_facts, restore_state, write_state
from minirlhf.store.weights import read_tensors, save_tensors

STEP = re.compile(r"step_(\d{8})")
REMEDY = "use another checkpoint, or begin the run again"


def directory_of(root: Path, step: int) -> Path:
    """Directory of the checkpoint of a step."""
    return root / f"step_{step:08d}"


def save_checkpoint(root: Path, state: Any, components: dict[str, dict[str, Any]], facts: dict[str, Any]) -> Path:
    """Write a run's state as root/step_NNNNNNNN; return that directory.

    components: state_dict of each component that has one. facts: hashes and versions, compared when the run is resumed.
    Raises DivergedError, and writes nothing, if a weight is not finite.
    """
    path = directory_of(root, state.step)
    of_components, plain = split_state(components)
    tensors = finite_tensors(state, f"iteration {state.step}", "try a lower ppo.lr or a higher kl.coef")
    root.mkdir(exist_ok=True)  # not its parents: a run directory that somebody removed is not made again
    with complete_directory(path) as temporary:
        save_tensors(of_components, temporary / "components.safetensors")
        write_state(temporary, state, tensors, {"components": plain, **facts})
    return path


def load_checkpoint(path: Path, state: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Verify a checkpoint and restore `state` from it; return (states of the components, state.json).

    Raises CheckpointError for a file that is not what was written, another format, or a state that does not fit.
    """
    components, saved = load_components(path)
    restore_state(state, path, saved, REMEDY)
    return components, saved


def load_components(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Verify a checkpoint; return (states of the components, state.json). CheckpointError as of `load_checkpoint`."""
    verify(path)
    saved = read_facts(path, REMEDY)
    try:
        if path.name != directory_of(path.parent, checked_count(saved["step"])).name:
            raise ValueError(f"it is of step {saved['step']}")
        return join_state(read_tensors(path / "components.safetensors"), saved["components"]), saved
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        what = f"not the state of a run ({type(fault).__name__}: {fault})"
        raise CheckpointError(what, str(path / STATE), REMEDY) from None


def newest_components(root: Path) -> dict[str, dict[str, Any]]:
    """States of the components in the newest whole checkpoint under root; empty where there is none."""
    path = newest(root)
    return {} if path is None else load_components(path)[0]


def all_of(root: Path) -> list[Path]:
    """Checkpoints under root, oldest first, including damaged ones."""
    return sorted(p for p in root.glob("step_*") if STEP.fullmatch(p.name))


def newest(root: Path, damaged: Callable[[CheckpointError], None] = lambda _: None) -> Path | None:
    """Newest checkpoint under root that verifies, or None; `damaged` is called with the fault of each newer one."""
    for path in reversed(all_of(root)):
        try:
            verify(path)
        except CheckpointError as fault:
            damaged(fault)
            continue
        return path
    return None


def prune(committed: Path, keep: int) -> None:
    """Delete all but the newest `keep` of the checkpoints up to the one that was just committed."""
    older = [path for path in all_of(committed.parent) if path.name < committed.name]
    for path in older[: max(0, len(older) - keep + 1)]:
        discard(path)


def set_aside(newest: Path) -> None:
    """Rename the checkpoints after the newest whole one, which are damaged.

    A run that continues from `newest` saves under the same names, and must not take them for its own.
    """
    for path in all_of(newest.parent):
        if path.name > newest.name:
            names = (path.with_name(f"damaged-{path.name}-{number}") for number in itertools.count(1))
            move_directory(path, next(name for name in names if not os.path.lexists(name)))


def split_state(components: dict[str, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Split component states into tensors, named LABEL:KEY (no label has a colon), and values for JSON."""
    tensors, plain = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for label, state in components.items():
        plain[label] = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        # A copy each: safetensors refuses tensors that share their memory.
        tensors |= {f"{label}:{k}": v.detach().cpu().clone() for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, plain


def join_state(tensors: dict[str, Tensor], plain: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reverse of `split_state`."""
    joined = {label: dict(state) for label, state in plain.items()}
    for name, tensor in tensors.items():
        label, _, key = name.partition(":")
        joined.setdefault(label, {})[key] = tensor
    return joined
