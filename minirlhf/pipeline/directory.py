"""The run directory: made or opened under a lock, and the models and results that are written into it.

Not here: the files that grow during PPO (drive.py), and what a resume removes or cuts (resume.py).
"""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from minirlhf.config.schema import KLConfig, RunConfig
from minirlhf.errors import DiskError, InputError, UsageError, UserError
from minirlhf.events import Emit
from minirlhf.models.lora import Adapted
from minirlhf.pipeline.context import RunContext
from minirlhf.ppo import PPOState
from minirlhf.report.of_run import REPORT, write_report
from minirlhf.signals import Terminated
from minirlhf.stages.base import Base
from minirlhf.stages.evaluate import Evaluation
from minirlhf.store import checkpoint
from minirlhf.store.adapters import model_files
from minirlhf.store.files import MANIFEST, checked_number, complete_directory, read_json, write_json
from minirlhf.store.jsonl import JsonLines
from minirlhf.store.layout import check_run, claim_directory
from minirlhf.store.lock import locked
from minirlhf.store.models import save_policy, save_reference


def finished(run: RunContext, newest: Path) -> bool:
    """True if nothing is left to do: the newest checkpoint is the last iteration's, and its evaluation is written.

    Writes the report where it is missing.
    """
    if not (run.directory / "evaluation.json").exists():
        return False
    if newest != checkpoint.directory_of(newest.parent, run.config.ppo.iterations):
        return False
    if not (run.directory / REPORT).exists():  # killed before it, or the disk was full
        write_report(run.directory)
    run.emit({"event": "already_finished", "run_dir": str(run.directory)})
    return True


@contextmanager
def run_directory(
    settings: RunConfig, out: Path | None, resume: bool, emit: Emit
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Make a run's directory, or open an existing one to resume it; hold its lock, and yield its absolute path.

    Yielded as well: the warnings of the lock, to be emitted behind the run's first event. A run that is stopped says
    how to resume it. A directory that holds no config.toml, because its run was killed before that was written, counts
    as empty. UsageError if `out` is in use, or holds no run to resume. A new run that is refused before it has made
    anything leaves nothing, so that the same command can be given again.
    """
    named = Path("runs") / f"{settings.preset}-{datetime.now():%Y%m%d-%H%M%S}-s{settings.seed}"
    directory = Path(os.path.abspath(out or claim_directory(named)))
    if resume:
        check_run(directory)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir()
        check_unused(directory)  # before a lock file is put there, and once more under the lock
    early = list[dict[str, Any]]()
    with locked(directory / ".lock", early.append):
        if not resume:
            check_unused(directory)
        how = f"go on with: minirlhf run --resume {shlex.quote(str(directory))}"
        try:
            yield directory, early
        except (KeyboardInterrupt, Terminated) as signal:
            raise type(signal)(how) from signal
        except UserError as fault:
            if not resume and checkpoint.all_of(directory / "checkpoints"):
                emit({"event": "warning", "message": f"what was saved is kept; when it is mended {how}"})
            elif not resume and not isinstance(fault, DiskError):
                discard_empty(directory)
            raise


def discard_empty(directory: Path) -> None:
    """Remove a run's directory that holds nothing but its configuration, so that its name is free again."""
    visible = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    if visible in ([], ["config.toml"]):
        with suppress(OSError):  # what cannot be removed counts as empty if only hidden files are left
            (directory / "config.toml").unlink(missing_ok=True)
            (directory / ".lock").unlink()
            directory.rmdir()


def check_unused(directory: Path) -> None:
    """Refuse a directory for a new run that holds anything but hidden files (UsageError).

    Hidden files are what a run leaves that was killed before it began.
    """
    if not directory.is_dir() or any(not path.name.startswith(".") for path in directory.iterdir()):
        todo = "choose another --out, or remove it"
        if (directory / "config.toml").is_file():
            todo = "go on with it by --resume, choose another --out, or remove it"
        raise UsageError("the run directory exists and is not empty", str(directory), todo)


def final_beta(directory: Path, kl: KLConfig) -> float:
    """The KL coefficient that a run ended with; the config's where it was fixed, or no evaluation was written.

    InputError for an evaluation that is damaged.
    """
    file = directory / "evaluation.json"
    if kl.controller == "fixed" or not file.exists():
        return kl.coef
    try:
        return checked_number(read_json(file)["kl_coef"])
    except (KeyError, ValueError):
        todo = "remove it: kl.coef is used then"
        raise InputError("not the evaluation of a run (no kl_coef)", str(file), todo) from None


def save_models(directory: Path, state: PPOState, base: Base) -> None:
    """Write model/ (the trained policy) and reference/ (what it started from, as hard links where possible).

    A frozen backbone is not copied: reference/ points to it, and holds the adapter that the run started from, if any.
    """
    with complete_directory(directory / "model") as temporary:
        save_policy(temporary, state.policy, base.tokenizer)
    with complete_directory(directory / "reference") as temporary:
        start = state.reference.policy.model
        if isinstance(state.policy.model, Adapted):
            save_reference(temporary, start)
        for source in () if isinstance(state.policy.model, Adapted) else model_files(base.directory):
            try:
                if not (base.directory / MANIFEST).is_file():  # a model of the user's own, who may write into its files
                    raise OSError
                os.link(source, temporary / source.name)
            except (OSError, AttributeError):  # on another file system, or one or a system without links
                shutil.copyfile(source, temporary / source.name)
        write_json(temporary / "reference.json", {"weights_sha256": state.reference.hash})


def write_results(directory: Path, result: Evaluation, summary: dict[str, Any]) -> None:
    """Append the evaluation's rows to samples.jsonl, then write evaluation.json: a run that has it is complete."""
    with JsonLines(directory / "samples.jsonl") as samples:
        for row in result.rows:
            samples.write({"stage": "evaluation", **row})
    write_json(directory / "evaluation.json", summary)
