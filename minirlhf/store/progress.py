"""Progress of a stage that is trained step by step (pretraining, SFT, a reward model), kept while it is not finished.

    .going-NAME/step_00000170/   FIELD.safetensors ...  state.json  MANIFEST.json

It lies beside the directory that the stage will make. A stage that was killed or told to stop continues from there, to
the same bits. Not here: how a state becomes files (state.py), and what the stages are (stages/).
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import CheckpointError
from minirlhf.signals import deferred
from minirlhf.store import checkpoint
from minirlhf.store.files import complete_directory, discard
from minirlhf.store.state import finite_tensors, read_facts, restore_state, write_state

SAVES = 10  # saves during a stage


def progress_directory(directory: Path) -> Path:
    """Directory that keeps the progress of what will be `directory`."""
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
    """Run the steps of a stage, from its saved progress if there is some; call `told` after each.

    steps: the stage's generator over `state`, not started. key: hash of everything that decides the stage's result;
    progress of another key is not used. A signal ends the stage after the current step, once it is saved.
    """
    found = load_progress(place, key, state, emit)
    if found:
        emit({"event": "resumed", "step": found, "from": str(checkpoint.directory_of(place, found))})
    every = max(1, total // SAVES)
    with deferred() as stop:
        for step, metrics in steps:
            told(step, metrics)
            if stop.asked or (step % every == 0 and step < total):
                save_progress(place, key, state)
            stop.leave("the same command goes on from here")


def discard_progress(place: Path) -> None:
    """Delete the progress of a stage, because its result is on disk or the progress cannot be used."""
    shutil.rmtree(place, ignore_errors=True)


def save_progress(place: Path, key: str, state: Any) -> None:
    """Write the state as place/step_NNNNNNNN, then remove the one before it."""
    tensors = finite_tensors(state, f"step {state.step}", "try a lower learning rate")
    place.mkdir(parents=True, exist_ok=True)
    path = checkpoint.directory_of(place, state.step)
    with complete_directory(path) as temporary:
        write_state(temporary, state, tensors, {"key": key, "threads": torch.get_num_threads()})
    checkpoint.prune(path, 1)


def load_progress(place: Path, key: str, state: Any, emit: Callable[[dict[str, Any]], None]) -> int:
    """Restore `state` from the newest whole progress of this key; return its step, 0 if there is none.

    Unusable progress is deleted; otherwise it could rank as newer than the next save.
    """

    def warn(message: str) -> None:
        emit({"event": "warning", "message": message})

    path = checkpoint.newest(place, lambda fault: warn(f"passed over: {fault}"))
    saved: dict[str, Any] = {}
    if path is not None:
        try:
            saved = read_facts(path, "it is begun again")
        except CheckpointError as fault:
            warn(f"passed over: {fault}")
    if path is None or saved.get("key") != key:
        discard_progress(place)
        return 0
    for other in checkpoint.all_of(place):
        if other != path:
            discard(other)
    if saved.get("threads") != torch.get_num_threads():
        warn(f"threads were {saved.get('threads')}, are {torch.get_num_threads()}: the last bits may differ")
    restore_state(state, path, saved, f"remove {place}")
    return int(state.step)
