"""Resuming a run: its newest whole checkpoint, the checks of today's config and data, and the files cut back to it.

    newest = newest_checkpoint(run)     before anything is built: CheckpointError, ConfigError
    go_on(run, training, newest)        into objects that were prepared as for a new run

Values that decide the numbers must be those of the run; the others (MAY_CHANGE, and all of [evaluation]) may change.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from minirlhf.components.component import Built
from minirlhf.config.layers import load_config
from minirlhf.config.paths import same_but_moved
from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, ConfigError, UsageError
from minirlhf.pipeline.build import TRAINED_REWARD_NAMES
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.facts import source_hash
from minirlhf.pipeline.rewards import RewardCalls
from minirlhf.pipeline.training import Training
from minirlhf.store import checkpoint
from minirlhf.store.files import discard, remove_left
from minirlhf.store.jsonl import cut, read_rows
from minirlhf.store.state import STATE, checked_count, read_facts

MAY_CHANGE = {
    "plugins",
    "ppo.iterations",
    "ppo.recompute",
    "run.bases",
    "run.checkpoint_every",
    "run.device",
    "run.keep_checkpoints",
    "run.log_every",
    "run.observers",
    "run.on_reward_error",
    "run.reward_timeout_s",
    "run.samples",
    "run.threads",
    "run.token_log",
}
DATA_NAMES = {"tokenizer": "tokenizer", "prompts": "prompts", "reward_models": "reward models"}  # hash -> its name
RESULTS = ("evaluation.json", "model")  # of a finished run; removed when it goes on
LOG_FILES = ("metrics.jsonl", "samples.jsonl", "tokens.jsonl")  # cut to their size at the checkpoint
ROUNDING_FACTS = ("torch", "minirlhf", "device", "threads")  # may differ, but move the last bits of the numbers


class Stateful(Protocol):
    """A component with state_dict and load_state_dict, called by name (as `Built` and `RewardCalls`)."""

    def tell(self, method: str, *arguments: Any) -> Any: ...


def newest_checkpoint(run: RunContext) -> Path | None:
    """Find the newest whole checkpoint; None where the run was killed before its first one and begins again.

    Raises CheckpointError if there are some and none is whole, or if the run is finished and they were removed;
    ConfigError for values that differ from the run's; UsageError for fewer iterations than are done. Changes nothing.
    """
    root = run.directory / "checkpoints"
    path = checkpoint.newest(root, lambda fault: run.warn(f"passed over: {fault}"))
    if path is None:
        if checkpoint.all_of(root):
            raise CheckpointError("no checkpoint is whole", str(root), "start the run again with another --out")
        if any((run.directory / name).exists() for name in RESULTS):
            raise CheckpointError("the run is finished, and its checkpoints are gone", str(root), "start a new run")
        before = load_config(str(run.directory / "config.toml"))[0].model_dump(mode="json")
        check_config(run.directory, before, run.config)
        return None
    saved = read_facts(path, checkpoint.REMEDY)  # another format is refused before anything else is compared or made
    step, config = saved.get("step"), saved.get("config")
    if not isinstance(step, int) or not isinstance(config, dict):
        raise CheckpointError("not the state of a run (no step, or no config)", str(path / STATE), checkpoint.REMEDY)
    check_config(run.directory, config, run.config)
    check_moved(path, saved, run.config)
    wanted = run.config.ppo.iterations
    if wanted < step:
        raise UsageError(f"ppo.iterations = {wanted}, and {step} are done", str(path), "ask for as many at least")
    return path


def check_config(directory: Path, before: Any, config: Config) -> None:
    """Refuse a config that changes a value which decides the numbers: ConfigError, a line for each such value."""
    was, wanted = (dict(dotted_leaves(x)) for x in (before, config.model_dump(mode="json")))
    changed = [key for key in sorted(was.keys() | wanted.keys()) if was.get(key) != wanted.get(key)]
    faults = [
        f"{key} was {was.get(key)!r}, is {wanted.get(key)!r}: {directory}; leave it as it was, or begin another run"
        for key in changed
        if key not in MAY_CHANGE
        and not key.startswith("evaluation.")
        and not may_move(key, was.get(key), wanted.get(key), config)
    ]
    if faults:
        raise ConfigError(faults)


def may_move(key: str, was: Any, now: Any, config: Config) -> bool:
    """True if a path may lie elsewhere, because what it holds is compared; not the `path` of a plugin's component."""
    trained = {f"rewards.{label}.options.path" for label, r in config.rewards.items() if r.use in TRAINED_REWARD_NAMES}
    return same_but_moved(key, was, now) and (not key.endswith(".options.path") or key in trained)


def check_moved(checkpoint_path: Path, saved: dict[str, Any], config: Config) -> None:
    """Refuse a source that holds something else than the checkpoint's, in its old place or a new one (CheckpointError).

    Prompts are compared as they are read (check_data). Checkpoints without hashes of the sources are held by those of
    the tokenizer, reference and reward models.
    """
    hashes = saved.get("sources")
    was, now = (dict(dotted_leaves(x)) for x in (saved["config"], config.model_dump(mode="json")))
    for key, place in now.items():
        if key in ("corpus.prompts", "corpus.heldout_prompts"):
            continue
        before = hashes.get(str(was.get(key))) if isinstance(hashes, dict) else None
        if before is None or not may_move(key, was.get(key), place, config):
            continue
        found = source_hash(place)
        if found != before:
            key = key.replace(".options.", ".")
            what = f"{key} is not what it was at the checkpoint: {str(found)[:12]}, and it was {str(before)[:12]}"
            raise CheckpointError(
                what, f"{place}, {checkpoint_path}", f"put it back, or give its place: --set {key}=PATH"
            )


def dotted_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every value in nested dictionaries."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from dotted_leaves(inner, f"{path}.{key}" if path else str(key))


def go_on(run: RunContext, training: Training, path: Path | None) -> None:
    """Restore state and components from a checkpoint; then, and only then, bring the directory back to it.

    Data that differ from the checkpoint's are refused; facts that only move the last bits are warned of. Without a
    checkpoint the run begins again.
    """
    sizes: dict[str, int] = {}
    if path is not None:
        components, saved = checkpoint.load_checkpoint(path, training.state)
        check_data(path, saved, training.facts)
        try:
            sizes = {name: checked_count(saved["files"][name]) for name in LOG_FILES}
            iterations = checked_count(saved["config"]["ppo"]["iterations"])
        except (KeyError, TypeError, ValueError) as fault:
            what = f"not the state of a run ({type(fault).__name__}: {fault})"
            raise CheckpointError(what, str(path / "state.json"), "use another checkpoint") from None
        restore_components(path, components, training.stateful)
        for text in differences(saved, training.facts, iterations):
            run.warn(text)
        checkpoint.set_aside(path)
    elif done := len(read_rows(run.directory / "metrics.jsonl")):
        run.warn(f"there is no checkpoint: {done} iterations are done again")
    remove_left(run.directory)
    remove_left(run.directory / "checkpoints")
    for name in (*RESULTS, "report.html"):
        discard(run.directory / name)
    for name in LOG_FILES:
        for message in cut(run.directory / name, sizes.get(name, 0), training.state.step):
            run.warn(message)
    run.emit({"event": "resumed", "step": training.state.step, "from": str(path) if path else None})


def check_data(path: Path, saved: dict[str, Any], facts: dict[str, Any]) -> None:
    """Refuse a tokenizer, prompts or reward models other than the checkpoint's (CheckpointError with both hashes)."""
    for name, title in DATA_NAMES.items():
        was, now = str(saved.get(name)), str(facts[name])
        if was != now:
            what = f"not the {title} of the checkpoint: {now[:12]}, and it was {was[:12]}"
            hint = ": --set corpus.prompts=PATH" if name == "prompts" else ""
            raise CheckpointError(what, str(path), f"resume with the run's own files{hint}")


def differences(saved: dict[str, Any], facts: dict[str, Any], iterations: int) -> Iterator[str]:
    """Yield a warning for every fact that may differ from the checkpoint's and does; iterations = the checkpoint's."""
    for name in ROUNDING_FACTS:
        if saved.get(name) != facts[name]:
            yield f"{name} was {saved.get(name)}, is {facts[name]}: the numbers may differ in their last bits"
    if changed := changed_code(saved.get("code"), facts["code"]):
        todo = "put the old code back, or begin another run, unless you mean to go on with the new one"
        yield f"the code of a plugin has changed since the checkpoint: {', '.join(changed)}; {todo}"
    now = facts["config"]["ppo"]["iterations"]
    if iterations != now:
        yield f"ppo.iterations was {iterations}, is {now}: a learning rate that falls now reaches 0 at {now}"


def changed_code(was: Any, now: dict[str, str]) -> list[str]:
    """Files of the checkpoint's code (path -> SHA-256) whose content no file of today's code has."""
    have = set(now.values())
    places = {Path(path).name: path for path in now}
    gone = [Path(path).name for path, digest in was.items() if digest not in have] if isinstance(was, dict) else []
    return sorted({places.get(name, f"{name} (no longer used)") for name in gone})


def component_states(named: Mapping[str, Built | RewardCalls]) -> dict[str, dict[str, Any]]:
    """state_dict of each component; PluginError if a checkpoint would not give it back unchanged."""
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


def restore_components(path: Path, saved: dict[str, dict[str, Any]], stateful: Mapping[str, Stateful]) -> None:
    """Give every component its saved state (CheckpointError if other components were saved)."""
    if saved.keys() != stateful.keys():
        names = sorted(saved.keys() ^ stateful.keys())
        raise CheckpointError(f"components with a state differ by {names}", str(path), "resume with the run's plugins")
    for name, component in stateful.items():
        component.tell("load_state_dict", saved[name])
