"""A stage that is trained step by step (pretraining, SFT, a reward model), kept on disk while it is not finished.

    .going-NAME/step_00000170/   state.safetensors  state.json  MANIFEST.json

beside what the stage will make. A stage that was killed or told to stop goes on from there, to the same bits. The state
is any dataclass of modules, an AdamW, a schedule, dictionaries of tensors and numbers: each field is taken as it is.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import CheckpointError
from minirlhf.signals import deferred
from minirlhf.store import checkpoint
from minirlhf.store.files import complete_directory, discard, read_json, write_json
from minirlhf.store.state import check_finite, put, taken
from minirlhf.store.weights import read_tensors, save_tensors

SAVES = 10  # of a stage


def place_of(directory: Path) -> Path:
    """Where the progress of what will be `directory` is kept."""
    return directory.with_name(f".going-{directory.name}")


def drive(
    place: Path,
    key: str,
    state: Any,
    steps: Iterator[tuple[int, dict[str, float]]],
    total: int,
    told: Callable[[int, dict[str, float]], None],
    emit: Callable[[dict[str, Any]], None],
) -> None:
    """Go through the steps of a stage from where its progress is; `told` hears of each.

    steps: the stage's generator over `state`, not started. key: what decides the stage's result; progress of another
    key is not used. A signal is answered after the step that is going on, and a save.
    """
    found = load(place, key, state, emit)
    if found:
        emit({"event": "resumed", "step": found, "from": str(checkpoint.directory_of(place, found))})
    every = max(1, total // SAVES)
    with deferred() as stop:
        for step, metrics in steps:
            told(step, metrics)
            if stop.asked or (step % every == 0 and step < total):
                save(place, key, state)
            stop.leave("the same command goes on from here")


def done(place: Path) -> None:
    """The stage is finished and its result on disk: its progress goes."""
    shutil.rmtree(place, ignore_errors=True)


def save(place: Path, key: str, state: Any) -> None:
    """Write the state as place/step_NNNNNNNN, and then remove what was there before."""
    tensors, numbers = taken(state)
    check_finite(tensors, f"step {state.step}", "try a lower learning rate")
    place.mkdir(parents=True, exist_ok=True)
    path = checkpoint.directory_of(place, state.step)
    with complete_directory(path) as temporary:
        save_tensors(tensors, temporary / "state.safetensors")
        write_json(temporary / "state.json", {"key": key, "threads": torch.get_num_threads(), **numbers})
    checkpoint.prune(path, 1)


def load(place: Path, key: str, state: Any, emit: Callable[[dict[str, Any]], None]) -> int:
    """Put the newest whole progress of this key into `state`; the step it is of, 0 if there is none. What is of no use
    goes: it would be taken for newer than what is saved next."""

    def warn(message: str) -> None:
        emit({"event": "warning", "message": message})

    path = checkpoint.newest(place, lambda fault: warn(f"passed over: {fault}"))
    saved = {} if path is None else read_json(path / "state.json", CheckpointError)
    if path is None or saved.get("key") != key:
        done(place)
        return 0
    for other in checkpoint.all_of(place):
        if other != path:
            discard(other)
    if saved.get("threads") != torch.get_num_threads():
        warn(f"threads were {saved.get('threads')}, are {torch.get_num_threads()}: the last bits may differ")
    put(state, read_tensors(path / "state.safetensors"), saved, path)
    return int(state.step)
