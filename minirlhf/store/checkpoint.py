"""The whole state of a run, in a directory that is complete or absent.

    checkpoints/step_00000120/  policy.safetensors  optimizer.safetensors  components.safetensors
                                state.json  MANIFEST.json

Floats of the state (beta, reward moments) are written as `float.hex()`, so that they come back to the bit.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minirlhf.errors import CheckpointError
from minirlhf.ppo import PPOState
from minirlhf.store.files import complete_directory, verify, write_json
from minirlhf.store.model import read_json, read_tensors, restore
from minirlhf.tensors import Moments

STEP = re.compile(r"step_(\d{8})")


def directory_of(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def save(root: Path, state: PPOState, components: dict[str, dict[str, Any]], facts: dict[str, Any]) -> Path:
    """Write the state as root/step_NNNNNNNN; `components` = state_dict of each that has one, `facts` = what the run
    was (hashes, versions), to be compared when it is resumed."""
    path = directory_of(root, state.step)
    tensors, plain = split_state(components)
    with complete_directory(path) as temporary:
        policy = {name: t.detach().cpu().contiguous() for name, t in state.policy.state_dict().items()}
        save_file(policy, temporary / "policy.safetensors")
        save_file(optimizer_tensors(state.optimizer), temporary / "optimizer.safetensors")
        save_file(tensors, temporary / "components.safetensors")
        write_json(
            temporary / "state.json",
            {
                "step": state.step,
                "updates": state.updates,
                "episodes": state.episodes,
                "tokens": state.tokens,
                "schedule": state.schedule.last_epoch,
                "beta": state.controller.beta.hex(),
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
    saved = read_json(path / "state.json")
    if saved["reference_sha256"] != state.reference.hash:
        raise CheckpointError(
            f"the reference is {state.reference.hash[:12]}, the checkpoint was made against "
            f"{saved['reference_sha256'][:12]}",
            str(path),
            "resume with the run's own reference",
        )
    restore(state.policy, read_tensors(path / "policy.safetensors"), path / "policy.safetensors")
    restore_optimizer(state.optimizer, read_tensors(path / "optimizer.safetensors"))
    state.step, state.updates = saved["step"], saved["updates"]
    state.episodes, state.tokens = saved["episodes"], saved["tokens"]
    state.controller.beta = float.fromhex(saved["beta"])
    m = saved["score_moments"]
    state.score_moments = Moments(float.fromhex(m["total"]), float.fromhex(m["squares"]), m["count"])
    state.schedule.last_epoch = saved["schedule"] - 1
    state.schedule.step()  # LambdaLR computes the rate from its counter alone
    tensors = read_tensors(path / "components.safetensors")
    return join_state(tensors, saved["components"]), saved


def newest(root: Path) -> Path | None:
    """The newest directory under root that verifies; a damaged one is passed over."""
    found = sorted((p for p in root.glob("step_*") if STEP.fullmatch(p.name)), reverse=True)
    for path in found:
        try:
            verify(path)
        except CheckpointError:
            continue
        return path
    return None


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; called after a new one is committed."""
    for path in sorted(p for p in root.glob("step_*") if STEP.fullmatch(p.name))[:-keep]:
        shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as flat names: INDEX.exp_avg, INDEX.exp_avg_sq, INDEX.step."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def split_state(components: dict[str, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors to safetensors (LABEL/KEY), everything else to JSON."""
    tensors, plain = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for label, state in components.items():
        plain[label] = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        tensors |= {f"{label}/{k}": v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, plain


def join_state(tensors: dict[str, Tensor], plain: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    joined = {label: dict(state) for label, state in plain.items()}
    for name, tensor in tensors.items():
        label, key = name.split("/", 1)
        joined.setdefault(label, {})[key] = tensor
    return joined
