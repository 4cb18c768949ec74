"""A run goes on where it was: which of its checkpoints, under which configuration, with which lines of its files.

    newest = newest_checkpoint(directory, config, emit)     before anything is built: CheckpointError, ConfigError
    go_on(newest, state, ...)                               into a state that was prepared as for a new run

What decides the numbers must be what it was; how long, how often, where and what is evaluated may change (MAY_CHANGE).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from minirlhf import PROJECT
from minirlhf.components.component import Built
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, ConfigError, UsageError
from minirlhf.events import Emit
from minirlhf.pipeline.build import Components
from minirlhf.pipeline.rewards import Scoring
from minirlhf.ppo import PPOState
from minirlhf.rewards.call import RewardModels
from minirlhf.stages.base import Base
from minirlhf.stages.data import Prompts
from minirlhf.store import checkpoint
from minirlhf.store.files import (
    MANIFEST,
    discard,
    read_json,
    remove_left,
    sha256,
)
from minirlhf.store.jsonl import cut, read_rows
from minirlhf.store.state import whole


def data_facts(
    config: Config, base: Base, prompts: Prompts, components: Components, rewards: RewardModels
) -> dict[str, Any]:
    """What a checkpoint is held against beside the versions: the config, hashes of the data, and of plugins' files."""
    texts = [[[prompt.text, prompt.columns] for prompt in part] for part in (prompts.train, prompts.heldout)]
    paths = [Path(str(reward.options.get("path"))) / MANIFEST for reward in config.rewards.values()]
    used = [components.kl, components.advantage, components.loss, *(built for _, _, built in rewards.models)]
    files = {Path(built.component.path) for built in used if built.component.owner != PROJECT}
    return {
        "config": config.model_dump(mode="json"),
        "tokenizer": base.tokenizer.hash,
        "prompts": hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).hexdigest(),
        "reward_models": ", ".join(sha256(path) for path in paths if path.is_file()),
        "code": {str(path): sha256(path) for path in sorted(files) if path.is_file()},
    }


def stateful(components: Components, rewards: RewardModels) -> dict[str, Built]:
    """The components that have a state to save, by what it is saved under."""
    named = {f"reward/{label}": built for label, _, built in rewards.models}
    named |= {"kl": components.kl, "advantage": components.advantage, "loss": components.loss}
    return {name: built for name, built in named.items() if built.stateful}


def component_states(named: Mapping[str, Built | Scoring]) -> dict[str, dict[str, Any]]:
    """state_dict of each of these; refused if it would come back from its files as something else."""
    states = {name: built.tell("state_dict") for name, built in named.items()}
    for name, state in states.items():
        try:
            plain = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
            if not all(isinstance(key, str) for key in state):
                raise TypeError("its keys are not all strings")
            if json.loads(json.dumps(plain, allow_nan=False)) != plain:
                raise TypeError("JSON has no tuples, and only strings as keys")
        except (TypeError, ValueError, AttributeError, RecursionError) as fault:
            raise named[name].error(f"has a state that cannot be saved ({fault})", "use tensors or JSON") from None
    return states


MAY_CHANGE = {
    *("ppo.iterations", "plugins", "run.device", "run.threads", "run.bases", "run.observers", "run.log_every"),
    *(
        "run.samples",
        "run.token_log",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.on_reward_error",
        "run.reward_timeout_s",
    ),
}
DATA = {"tokenizer": "tokenizer", "prompts": "prompts", "reward_models": "reward models"}  # hashes among the facts
RESULTS = ("evaluation.json", "model")  # what a finished run has, and one that goes on no longer has
FILES = ("metrics.jsonl", "samples.jsonl", "tokens.jsonl")  # cut to what they were at the checkpoint
SAME = ("torch", "minirlhf", "device", "threads")  # facts that the last bits of the numbers depend on


class Stateful(Protocol):
    """A component with a state_dict and a load_state_dict, told by name (as `components.Built`)."""

    def tell(self, method: str, *arguments: Any) -> Any: ...


def newest_checkpoint(directory: Path, config: Config, emit: Emit) -> Path | None:
    """The newest whole checkpoint; None where the run was killed before its first one and begins again.

    Raises CheckpointError if there are some and none is whole, or if the run is finished and they were removed;
    ConfigError for values that differ from the run's. Changes nothing.
    """
    root = directory / "checkpoints"
    path = checkpoint.newest(root, lambda fault: emit({"event": "warning", "message": f"passed over: {fault}"}))
    if path is None:
        if checkpoint.all_of(root):
            raise CheckpointError("no checkpoint is whole", str(root), "start the run again with another --out")
        if any((directory / name).exists() for name in RESULTS):
            raise CheckpointError("the run is finished, and its checkpoints are gone", str(root), "start a new run")
        before = load_config(str(directory / "config.toml"))[0].model_dump(mode="json")
        check_config(directory, before, config)
        return None
    saved = read_json(path / "state.json", CheckpointError)
    step = saved.get("step")
    check_config(directory, saved.get("config"), config)
    if not isinstance(step, int) or config.ppo.iterations < step:
        raise UsageError(
            f"ppo.iterations = {config.ppo.iterations}, and {step} are done", str(path), "ask for as many at least"
        )
    return path


def check_config(directory: Path, before: Any, config: Config) -> None:
    """Every value that decides the numbers is what it was; a line for each that is not (ConfigError)."""
    was, wanted = (dict(leaves(x)) for x in (before, config.model_dump(mode="json")))
    changed = [key for key in sorted(was.keys() | wanted.keys()) if was.get(key) != wanted.get(key)]
    faults = [
        f"{key} was {was.get(key)!r}, is {wanted.get(key)!r}: {directory}; leave it as it was, or begin another run"
        for key in changed
        if key not in MAY_CHANGE and not key.startswith("evaluation.")
    ]
    if faults:
        raise ConfigError(faults)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested dictionaries."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{path}.{key}" if path else str(key))


def go_on(
    path: Path | None,
    directory: Path,
    state: PPOState,
    stateful: Mapping[str, Stateful],
    facts: dict[str, Any],
    emit: Emit,
) -> None:
    """Put the checkpoint into state and components; then, and only then, let the directory be what it was at it.

    facts: those of today, held against those of the checkpoint: data that differ are refused, what only the last bits
    depend on is warned of. Without a checkpoint the run begins again.
    """
    sizes: dict[str, int] = {}
    if path is not None:
        components, saved = checkpoint.load(path, state)
        check_data(path, saved, facts)
        try:
            sizes = {name: whole(saved["files"][name]) for name in FILES}
            was = whole(saved["config"]["ppo"]["iterations"])
        except (KeyError, TypeError, ValueError) as fault:
            what = f"not the state of a run ({type(fault).__name__}: {fault})"
            raise CheckpointError(what, str(path / "state.json"), "use another checkpoint") from None
        restore_components(path, components, stateful)
        for text in differences(saved, facts, was):
            emit({"event": "warning", "message": text})
        checkpoint.set_aside(path)
    elif done := len(read_rows(directory / "metrics.jsonl")):
        emit({"event": "warning", "message": f"there is no checkpoint: {done} iterations are done again"})
    remove_left(directory)
    remove_left(directory / "checkpoints")
    for name in (*RESULTS, "report.html"):
        discard(directory / name)
    for name in FILES:
        for message in cut(directory / name, sizes.get(name, 0), state.step):
            emit({"event": "warning", "message": message})
    emit({"event": "resumed", "step": state.step, "from": str(path) if path else None})


def check_data(path: Path, saved: dict[str, Any], facts: dict[str, Any]) -> None:
    """Tokenizer, prompts and reward models are those of the checkpoint (CheckpointError, with both hashes)."""
    for name in DATA:
        was, now = str(saved.get(name)), str(facts[name])
        if was != now:
            what = f"not the {DATA[name]} of the checkpoint: {now[:12]}, and it was {was[:12]}"
            raise CheckpointError(what, str(path), "resume with the run's own files")


def differences(saved: dict[str, Any], facts: dict[str, Any], was: int) -> Iterator[str]:
    """What is not as it was, and may be."""
    for name in SAME:
        if saved.get(name) != facts[name]:
            yield f"{name} was {saved.get(name)}, is {facts[name]}: the numbers may differ in their last bits"
    if saved.get("code") != facts["code"]:
        yield "the code of a plugin has changed since the checkpoint"
    now = facts["config"]["ppo"]["iterations"]
    if was != now:
        yield f"ppo.iterations was {was}, is {now}: a learning rate that falls now reaches 0 at {now}"


def restore_components(path: Path, saved: dict[str, dict[str, Any]], stateful: Mapping[str, Stateful]) -> None:
    """The state of every component that has one (CheckpointError if others were saved)."""
    if saved.keys() != stateful.keys():
        names = sorted(saved.keys() ^ stateful.keys())
        raise CheckpointError(f"components with a state differ by {names}", str(path), "resume with the run's plugins")
    for name, component in stateful.items():
        component.tell("load_state_dict", saved[name])
