"""A finished run, opened again: its config, models, stages and prompts, for `evaluate` and `sample`."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf.components.component import INPUTS
from minirlhf.config.schema import Config
from minirlhf.errors import InputError, UsageError
from minirlhf.models.policy import Policy, Reference
from minirlhf.stages.base import base_place, problem_of, reference_of, sampler_of
from minirlhf.stages.data import Candidates, Prompts, fit, lab_candidates, load_documents, read_candidates
from minirlhf.store.files import verify
from minirlhf.store.weights import load_policy, load_transformer
from minirlhf.text.corpus import Prompt, fit_prompts, read_prompts
from minirlhf.text.files import is_packaged
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class SavedRun:
    """Policy and reference of a run, its tokenizer, and the device they are on."""

    policy: Policy
    reference: Reference
    tokenizer: Tokenizer
    device: torch.device


def config_file(directory: Path) -> str:
    """RUN/config.toml, or UsageError if this is no finished run."""
    if not os.path.isfile(directory / "config.toml"):  # False, too, for a name that the system refuses
        raise UsageError("not a run directory", str(directory), "give a directory that `minirlhf run` has made")
    if not (directory / "model").is_dir():
        todo = f"go on with it: minirlhf run --resume {directory}"
        raise UsageError("this run has no model: it is not finished", str(directory), todo)
    return str(directory / "config.toml")


def open_run(directory: Path, config: Config, device: torch.device) -> SavedRun:
    """Load and verify model/ and reference/ (CheckpointError if a file is not what was written)."""
    verify(directory / "model")
    verify(directory / "reference")
    tokenizer = Tokenizer.load(directory / "model")
    sampler = sampler_of(config, tokenizer)
    policy = load_policy(directory / "model", sampler).to(device).eval()
    base = Policy(load_transformer(directory / "reference"), sampler).to(device)
    return SavedRun(policy, reference_of(config, base, tokenizer), tokenizer, device)


def side_of(saved: SavedRun, config: Config, side: str) -> Policy:
    """The model of a stage of the run: base, sft, reference or policy.

    The reference is what PPO started from: what SFT made of the base where there were demonstrations, else the base.
    """
    fine_tuned = config.corpus.demonstrations is not None
    if side == "sft" and not fine_tuned:
        raise UsageError("this run had no demonstrations, so there is no sft", "--from sft", "leave it out")
    if side == "base" and fine_tuned:
        return kept_base(saved, config)
    return saved.policy if side == "policy" else saved.reference.policy


def kept_base(saved: SavedRun, config: Config) -> Policy:
    """The base that SFT began with, which is not kept beside the run (InputError if it is not under run.bases)."""
    directory = base_place(config)
    if directory.is_dir():
        verify(directory)
        if Tokenizer.load(directory).hash == saved.tokenizer.hash:  # else it was made of another text since then
            return Policy(load_transformer(directory), saved.policy.sampler).to(saved.device).eval()
    todo = "make it again by `minirlhf pretrain RUN/config.toml`, or say where bases are by --set run.bases=DIR"
    raise InputError("the base of this run is not there any more", str(directory), todo)


def read_sources(config: Config) -> Candidates:
    """The prompts of a run, or of its problem. Documents are read where prompts are made of them, and where they are
    still to be learned from, so that their faults are found before anything else is done."""
    problem, corpus = problem_of(config), config.corpus
    if problem is not None:
        return lab_candidates(problem)
    needed = not (corpus.prompts or is_packaged(corpus.text)) or not base_place(config).exists()
    return read_candidates(corpus, load_documents(corpus) if needed else None, INPUTS["reward"])


def heldout_prompts(config: Config, tokenizer: Tokenizer) -> Prompts:
    """The prompts of the run's own config, read again."""
    longest = config.model.max_positions - config.sampler.max_new_tokens
    return fit(read_sources(config), tokenizer, longest)


def prompts_to_use(config: Config, tokenizer: Tokenizer, file: str | None) -> list[Prompt]:
    """The prompts of a file, or those that the run was trained on; those that fit."""
    if file is None:
        return heldout_prompts(config, tokenizer).train
    longest = config.model.max_positions - config.sampler.max_new_tokens - 1
    return fit_prompts(read_prompts(file, config.corpus.errors), tokenizer, longest)[0]
