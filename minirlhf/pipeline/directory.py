"""The run directory: made or opened under a lock, and the results that are written into it."""

import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import minirlhf
from minirlhf.config.schema import Config
from minirlhf.errors import UsageError, UserError
from minirlhf.events import Emit
from minirlhf.ppo import PPOState
from minirlhf.report.of_run import REPORT, write_report
from minirlhf.signals import Terminated
from minirlhf.stages.base import Base
from minirlhf.stages.evaluate import Evaluation
from minirlhf.store import checkpoint
from minirlhf.store.files import complete_directory, read_json, write_json
from minirlhf.store.jsonl import JsonLines
from minirlhf.store.layout import check_run
from minirlhf.store.lock import locked
from minirlhf.store.weights import save_policy


def finished(directory: Path, newest: Path, config: Config, emit: Emit) -> bool:
    """Whether nothing is left to do."""
    if not (directory / "evaluation.json").exists():
        return False
    if newest != checkpoint.directory_of(newest.parent, config.ppo.iterations):
        return False
    if not (directory / REPORT).exists():  # killed before it, or there was no room
        write_report(directory)
    emit({"event": "already_finished", "run_dir": str(directory)})
    return True


@contextmanager
def run_directory(config: Config, out: Path | None, resume: bool, emit: Emit) -> Iterator[Path]:
    """Make the directory exclusively, or open that of a run; hold its lock; say how to go on with what does not end.

    A directory that was killed before its config.toml was written holds nothing and is taken again.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = out or Path("runs") / f"{config.run.preset}-{stamp}-s{config.run.seed}"
    directory = Path(os.path.abspath(directory))
    if resume:
        check_run(directory)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir()
        check_unused(directory)  # before a lock file is put there, and once more under the lock
    with locked(directory / ".lock"):
        if not resume:
            check_unused(directory)
        how = f"go on with: minirlhf run --resume {shlex.quote(str(directory))}"
        try:
            yield directory
        except (KeyboardInterrupt, Terminated) as told:
            raise type(told)(how) from told
        except UserError:
            if not resume and checkpoint.all_of(directory / "checkpoints"):
                emit({"event": "warning", "message": f"what was saved is kept; when it is mended {how}"})
            raise


def check_unused(directory: Path) -> None:
    """Nothing is in a new run's directory, but for what one that was killed before it began may have left."""
    if not directory.is_dir() or any(not path.name.startswith(".") for path in directory.iterdir()):
        todo = "choose another --out, or remove it"
        if (directory / "config.toml").is_file():
            todo = "go on with it by --resume, choose another --out, or remove it"
        raise UsageError("the run directory exists and is not empty", str(directory), todo)


def versions(config: Config, device: torch.device) -> dict[str, Any]:
    """What a result depends on beside the config."""
    return {
        "preset": config.run.preset,
        "device": str(device),
        "threads": config.run.threads,
        "minirlhf": minirlhf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def final_beta(directory: Path, config: Config) -> float:
    """The KL coefficient that a run ended with; the config's, if that is not known or was fixed."""
    if config.kl.controller == "fixed":
        return config.kl.coef
    try:
        return float(read_json(directory / "evaluation.json")["kl_coef"])
    except (UserError, KeyError, TypeError, ValueError):
        return config.kl.coef


def save_models(directory: Path, state: PPOState, base: Base) -> None:
    """model/ = the trained policy; reference/ = the base it started from, hard links where the file system allows."""
    with complete_directory(directory / "model") as temporary:
        save_policy(temporary, state.policy, base.tokenizer)
    with complete_directory(directory / "reference") as temporary:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            try:
                os.link(base.directory / name, temporary / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(base.directory / name, temporary / name)
        write_json(temporary / "reference.json", {"weights_sha256": state.reference.hash})


def write_results(directory: Path, result: Evaluation, summary: dict[str, Any]) -> None:
    """evaluation.json last: where it stands, the run is complete."""
    with JsonLines(directory / "samples.jsonl") as samples:
        for row in result.rows:
            samples.write({"stage": "evaluation", **row})
    write_json(directory / "evaluation.json", summary)
