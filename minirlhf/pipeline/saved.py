"""A finished run, opened again: its config file, its models, and the prompts that its config names.

Not here: evaluating it (evaluation.py), and going on with an unfinished one (resume.py).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf.config.layers import OWN_KEYS, with_options
from minirlhf.config.schema import Config, RewardConfig
from minirlhf.config.toml import read_file
from minirlhf.errors import InputError, UsageError
from minirlhf.models.policy import Policy, Reference
from minirlhf.pipeline.sources import read_run_prompts
from minirlhf.stages.base import base_directory, reference_of, sampler_of, start_trunk
from minirlhf.stages.data import Prompts, fit_to_context
from minirlhf.store.adapters import is_adapted, model_hash
from minirlhf.store.files import verify
from minirlhf.store.models import load_policy, read_tokenizer, reference_trunk
from minirlhf.text.corpus import Prompt, fit_prompts, read_prompts
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunModels:
    """Policy and reference of a run, their tokenizer, and the device they are on."""

    policy: Policy
    reference: Reference
    tokenizer: Tokenizer
    device: torch.device


def config_file(directory: Path) -> str:
    """Path of RUN/config.toml; UsageError if the directory holds no finished run."""
    if not os.path.isfile(directory / "config.toml"):  # False, too, for a name that is too long
        raise UsageError("not a run directory", str(directory), "give a directory that `minirlhf run` has made")
    if not (directory / "model").is_dir():
        todo = f"go on with it: minirlhf run --resume {directory}"
        raise UsageError("this run has no model: it is not finished", str(directory), todo)
    return str(directory / "config.toml")


def open_run(directory: Path, config: Config, device: torch.device) -> RunModels:
    """Load model/ and reference/ of a run (CheckpointError if a file is not the one that was written)."""
    verify(directory / "model")
    verify(directory / "reference")
    if is_adapted(directory / "model"):
        note_base(config)
    tokenizer = read_tokenizer(directory / "model", chat=config.corpus.chat)
    start = reference_trunk(directory / "reference", device)
    sampler = sampler_of(config, tokenizer, start.config.vocab_size)
    policy = load_policy(directory / "model", sampler, device).to(device).eval()
    base = Policy(start, sampler).to(device)
    return RunModels(policy, reference_of(config, base, tokenizer), tokenizer, device)


def note_base(config: Config) -> None:
    """Look at the base that the configuration names, if it is there: adapters whose base has moved find it by that."""
    directory = base_directory(config)
    if os.path.isdir(directory):
        model_hash(directory)


def trained_on(directory: Path) -> dict[str, RewardConfig]:
    """Rewards that a run is trained on, by RUN/config.toml; an evaluation may call others."""
    sections = read_file(directory / "config.toml").get("rewards", {})
    return {
        label: RewardConfig.model_validate(with_options({"use": label, **section}, OWN_KEYS["rewards"]))
        for label, section in sections.items()
    }


def side_of(models: RunModels, config: Config, side: str) -> Policy:
    """The model of a stage of the run; side = base, sft, reference or policy (UsageError for a stage it did not have).

    The reference is what PPO started from: the fine-tuned base where there were demonstrations, else the base itself.
    """
    fine_tuned = config.corpus.demonstrations is not None
    if side == "sft" and not fine_tuned:
        raise UsageError("this run had no demonstrations, so there is no sft", "--from sft", "leave it out")
    if side == "base" and fine_tuned:
        return base_before_sft(models, config)
    return models.policy if side == "policy" else models.reference.policy


def base_before_sft(models: RunModels, config: Config) -> Policy:
    """The base that SFT began with; it is not part of the run (InputError if it is no longer under run.bases)."""
    directory = base_directory(config)
    if directory.is_dir():
        if config.model.path is None:
            verify(directory)
        tokenizer = read_tokenizer(directory, chat=config.corpus.chat)
        if tokenizer.hash == models.tokenizer.hash:  # else it has been made anew from another text
            return Policy(start_trunk(directory, config, models.device), models.policy.sampler).to(models.device).eval()
    todo = "make it again by `minirlhf pretrain RUN/config.toml`, or say where bases are by --set run.bases=DIR"
    raise InputError("the base of this run is not there any more", str(directory), todo)


def heldout_prompts(config: Config, tokenizer: Tokenizer) -> Prompts:
    """Training and held-out prompts of the run's own config, read again."""
    return fit_to_context(
        read_run_prompts(config), tokenizer, config.model.max_positions - config.sampler.max_new_tokens
    )


def prompts_to_use(config: Config, tokenizer: Tokenizer, file: str | None) -> tuple[list[Prompt], str | None]:
    """Prompts that fit the context, and a note on them: those of a file, or without one those of the run's training."""
    if file is None:
        return heldout_prompts(config, tokenizer).train, None
    longest = config.model.max_positions - config.sampler.max_new_tokens - 1
    return fit_prompts(read_prompts(file, config.corpus.errors), tokenizer, longest)
