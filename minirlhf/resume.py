"""A run goes on where it was: which of its checkpoints, under which configuration, with which lines of its files.

    newest = newest_checkpoint(directory, config, emit)     before anything is built: CheckpointError, ConfigError
    go_on(newest, state, ...)                               into a state that was prepared as for a new run

What decides the numbers must be what it was; how long, how often, where and what is evaluated may change (MAY_CHANGE).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirlhf.base import Emit
from minirlhf.components import Built
from minirlhf.config import Config
from minirlhf.errors import CheckpointError, ConfigError, UsageError
from minirlhf.ppo import PPOState
from minirlhf.store import checkpoint
from minirlhf.store.files import remove_left
from minirlhf.store.metrics import cut
from minirlhf.store.model import read_json
from minirlhf.text.tokenizer import Tokenizer

MAY_CHANGE = {
    *("ppo.iterations", "plugins", "run.device", "run.threads", "run.bases", "run.observers", "run.log_every"),
    *("run.samples", "run.checkpoint_every", "run.keep_checkpoints", "run.on_reward_error", "run.reward_timeout_s"),
}
FILES = ("metrics.jsonl", "samples.jsonl")  # of the run directory: cut to what they were at the checkpoint
SAME = ("torch", "minirlhf", "device", "threads")  # facts that the last bits of the numbers depend on


def check_run(directory: Path) -> None:
    """It is the directory of a run (UsageError)."""
    if not (directory / "config.toml").is_file():
        raise UsageError(
            "there is no run to resume", str(directory), "give the directory of one; without a config.toml it has none"
        )


def newest_checkpoint(directory: Path, config: Config, emit: Emit) -> Path | None:
    """The newest whole checkpoint; None where the run was killed before its first one and begins again.

    Raises CheckpointError if there are some and none is whole, ConfigError for values that differ from the run's.
    """
    root = directory / "checkpoints"
    remove_left(directory)
    remove_left(root)
    path = checkpoint.newest(root, lambda fault: emit({"event": "warning", "message": f"passed over: {fault}"}))
    if path is None:
        if checkpoint.all_of(root):
            raise CheckpointError("no checkpoint is whole", str(root), "start the run again with another --out")
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
        f"{key} was {was.get(key)!r}, is {wanted.get(key)!r}: {directory}; a run goes on with what it began with"
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
    stateful: dict[str, Built],
    facts: dict[str, Any],
    tokenizer: Tokenizer,
    emit: Emit,
) -> None:
    """Put the checkpoint into state and components, and cut the files to it; `facts` are those of today.

    Without a checkpoint the files are emptied: the run begins again.
    """
    sizes: dict[str, Any] = {}
    if path is not None:
        components, saved = checkpoint.load(path, state)
        if saved.get("tokenizer") != tokenizer.hash:
            raise CheckpointError(
                f"the tokenizer is {tokenizer.hash[:12]}, the checkpoint has {str(saved.get('tokenizer'))[:12]}",
                str(path), "resume with the run's own base",
            )  # fmt: skip
        restore_components(path, components, stateful)
        sizes = saved.get("files") or {}
        for name in SAME:
            if saved.get(name) != facts[name]:
                text = f"{name} was {saved.get(name)}, is {facts[name]}: the numbers may differ in their last bits"
                emit({"event": "warning", "message": text})
        if state.schedule.last_epoch and saved["config"]["ppo"]["iterations"] != facts["config"]["ppo"]["iterations"]:
            was, now = (x["config"]["ppo"]["iterations"] for x in (saved, facts))
            text = f"ppo.iterations was {was}, is {now}: a learning rate that falls now reaches 0 at {now}"
            emit({"event": "warning", "message": text})
    for name in FILES:
        for message in cut(directory / name, sizes.get(name, 0)):
            emit({"event": "warning", "message": message})
    emit({"event": "resumed", "step": state.step, "from": str(path) if path else None})


def restore_components(path: Path, saved: dict[str, dict[str, Any]], stateful: dict[str, Built]) -> None:
    """The state of every component that has one (CheckpointError if others were saved)."""
    if saved.keys() != stateful.keys():
        names = sorted(saved.keys() ^ stateful.keys())
        raise CheckpointError(f"components with a state differ by {names}", str(path), "resume with the run's plugins")
    for name, built in stateful.items():
        built.tell("load_state_dict", saved[name])
