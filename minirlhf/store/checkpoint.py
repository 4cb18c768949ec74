"""The whole state of a run, in a directory that is complete or absent.

    checkpoints/step_00000120/  policy.safetensors  optimizer.safetensors  components.safetensors
                                state.json  MANIFEST.json

Floats of the state (beta, reward moments) are written as `float.hex()`, so that they come back to the bit. Weights that
are not finite are never written. Nothing in these files is trusted when they are read: see SECURITY.md.
"""

import itertools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from minirlhf.errors import CheckpointError
from minirlhf.ppo import PPOState
from minirlhf.store.files import complete_directory, discard, read_json, verify, write_json
from minirlhf.store.state import check_finite, optimizer_tensors, restore_optimizer, restore_schedule, whole
from minirlhf.store.weights import read_tensors, restore, save_tensors
from minirlhf.tensors import Moments

STEP = re.compile(r"step_(\d{8})")
COUNTERS = ("step", "updates", "episodes", "tokens")  # of the state


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return root / f"step_{step:08d}"


def save(root: Path, state: PPOState, components: dict[str, dict[str, Any]], facts: dict[str, Any]) -> Path:
    """Write the state as root/step_NNNNNNNN; `components` = state_dict of each that has one, `facts` = what the run
    was (hashes, versions), to be compared when it is resumed."""
    path = directory_of(root, state.step)
    tensors, plain = split_state(components)
    policy = {name: t.detach().cpu().contiguous() for name, t in state.policy.state_dict().items()}
    optimizer = optimizer_tensors(state.optimizer)
    check_finite(policy | optimizer, f"iteration {state.step}", "try a lower ppo.lr or a higher kl.coef")
    root.mkdir(exist_ok=True)  # not its parents: a run directory that somebody removed is not made again
    with complete_directory(path) as temporary:
        save_tensors(policy, temporary / "policy.safetensors")
        save_tensors(optimizer, temporary / "optimizer.safetensors")
        save_tensors(tensors, temporary / "components.safetensors")
        write_json(
            temporary / "state.json",
            {
                **{name: getattr(state, name) for name in COUNTERS},
                "schedule": state.schedule.last_epoch,
                "beta": state.controller.beta.hex(),
                "penalty": state.penalty.beta.hex(),
                "score_moments": {
                    "total": state.score_moments.total.hex(),
                    "squares": state.score_moments.squares.hex(),
                    "count": state.score_moments.count,
                },
                "reference_sha256": state.reference.hash,
                "components": plain,
                **facts,
            },
        )
    return path


def load(path: Path, state: PPOState) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Verify a checkpoint and put it into `state`; returns (state of the components, state.json)."""
    verify(path)
    saved = read_json(path / "state.json", CheckpointError)
    made_with = str(saved.get("reference_sha256"))
    if made_with != state.reference.hash:
        raise CheckpointError(
            f"the reference is {state.reference.hash[:12]}, the checkpoint was made against {made_with[:12]}",
            str(path),
            "resume with the run's own reference",
        )
    try:
        m = saved["score_moments"]
        moments = Moments(float.fromhex(m["total"]), float.fromhex(m["squares"]), whole(m["count"]))
        beta, penalty = float.fromhex(saved["beta"]), float.fromhex(saved["penalty"])
        counters = {name: whole(saved[name]) for name in (*COUNTERS, "schedule")}
        if path.name != directory_of(path.parent, counters["step"]).name:
            raise ValueError(f"it is of step {counters['step']}")
        if not all(math.isfinite(x) for x in (beta, penalty, moments.total, moments.squares)):
            raise ValueError("a coefficient is not finite")
        components = join_state(read_tensors(path / "components.safetensors"), saved["components"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
        where, todo = str(path / "state.json"), "use another checkpoint"
        raise CheckpointError(f"not the state of a run ({type(fault).__name__}: {fault})", where, todo) from None
    restore(state.policy, read_tensors(path / "policy.safetensors"), path / "policy.safetensors")
    restore_optimizer(state.optimizer, read_tensors(path / "optimizer.safetensors"), path / "optimizer.safetensors")
    restore_schedule(state.schedule, counters.pop("schedule"))
    state.controller.beta, state.penalty.beta, state.score_moments = beta, penalty, moments
    for name, value in counters.items():
        setattr(state, name, value)
    return components, saved


def all_of(root: Path) -> list[Path]:
    """The checkpoints under root, oldest first, damaged ones as well."""
    return sorted(p for p in root.glob("step_*") if STEP.fullmatch(p.name))


def newest(root: Path, damaged: Callable[[CheckpointError], None] = lambda _: None) -> Path | None:
    """The newest directory under root that verifies; each newer one that does not is told to `damaged`."""
    for path in reversed(all_of(root)):
        try:
            verify(path)
        except CheckpointError as fault:
            damaged(fault)
            continue
        return path
    return None


def prune(committed: Path, keep: int) -> None:
    """Of the checkpoints up to the one that was just committed, delete all but the newest `keep`."""
    older = [path for path in all_of(committed.parent) if path.name < committed.name]
    for path in older[: max(0, len(older) - keep + 1)]:
        discard(path)


def set_aside(newest: Path) -> None:
    """What stands behind the newest whole checkpoint is damaged: it loses its name, so that a run that goes on from
    there cannot take it for its own."""
    for path in all_of(newest.parent):
        if path.name > newest.name:
            names = (path.with_name(f"damaged-{path.name}-{number}") for number in itertools.count(1))
            path.rename(next(name for name in names if not os.path.lexists(name)))


def split_state(components: dict[str, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors to safetensors (LABEL:KEY; no label has a colon), everything else to JSON."""
    tensors, plain = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for label, state in components.items():
        plain[label] = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        # A copy each: safetensors refuses tensors that share their memory.
        tensors |= {f"{label}:{k}": v.detach().cpu().clone() for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, plain


def join_state(tensors: dict[str, Tensor], plain: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `split_state` split."""
    joined = {label: dict(state) for label, state in plain.items()}
    for name, tensor in tensors.items():
        label, _, key = name.partition(":")
        joined.setdefault(label, {})[key] = tensor
    return joined
