"""Data of a run: documents to pretrain on, prompts to train on, prompts held out for evaluation.

It is decided here which file serves for what, and what happens when one is missing; `notes` say so, and the run prints
them: nothing is dropped, split or repeated silently. Not here: reading the formats (text/corpus.py).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from minirlhf.config.paths import check_place
from minirlhf.config.schema import CorpusConfig
from minirlhf.errors import InputError
from minirlhf.exact.lab import problem_prompts
from minirlhf.exact.problems import Problem
from minirlhf.models.generate import PromptBatch
from minirlhf.streams import generator
from minirlhf.text.corpus import (
    Document,
    Prompt,
    common_columns,
    fit_prompts,
    openings,
    read_documents,
    read_prompts,
    split_documents,
    split_prompts,
)
from minirlhf.text.files import is_packaged
from minirlhf.text.splits import shared_note
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Documents:
    """Documents for pretraining and for its held-out loss."""

    train: list[Document]
    heldout: list[Document]


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts that fit the context, and notes on how they were chosen."""

    train: list[Prompt]
    heldout: list[Prompt]
    notes: list[str]


def load_documents(corpus: CorpusConfig) -> Documents:
    """Read `corpus.text` and hold out `corpus.heldout_share` of it by hash (more of a small one)."""
    check_place(corpus, "text")
    return Documents(*split_documents(read_documents(corpus.text, corpus.errors), corpus.heldout_share))


@dataclass(frozen=True)
class Candidates:
    """Prompts as they were read, before a tokenizer says which fit; heldout None: to be split off."""

    train: list[Prompt]
    heldout: list[Prompt] | None
    notes: list[str]

    @property
    def columns(self) -> set[str]:
        """Names of the columns that a reward can rely on: those of both sides."""
        return common_columns(self.train, *([] if self.heldout is None else [self.heldout]))


def read_candidates(corpus: CorpusConfig, documents: Documents | None, reserved: Collection[str]) -> Candidates:
    """Read the prompts of the config; else those of a packaged corpus; else openings of held-out documents.

    documents: may be None if no opening is needed. reserved: names of a reward's own inputs, which no column may have.
    """
    check_place(corpus, "prompts", "heldout_prompts")
    source = corpus.prompts or (corpus.text if is_packaged(corpus.text) else None)
    if source is None:
        assert documents is not None, "openings are theirs"
        found = openings(documents.heldout, corpus.opening_words)
        if not found:
            todo = "give corpus.prompts, or more and longer documents"
            raise InputError("no held-out document goes on after its opening: there is no prompt", corpus.text, todo)
        return Candidates(found, None, [f"no prompts given: {len(found)} openings of held-out documents serve"])
    train = read_prompts(source, corpus.errors, which="prompts", reserved=reserved)
    other = corpus.heldout_prompts or (source if is_packaged(source) else None)
    if other is None:
        return Candidates(train, None, [])
    return Candidates(train, read_prompts(other, corpus.errors, which="heldout_prompts", reserved=reserved), [])


def lab_candidates(problem: Problem) -> Candidates:
    """Prompts of a problem, for training and evaluation: it has no others."""
    prompts = [Prompt(text, columns) for text, columns in problem_prompts(problem)]
    return Candidates(prompts, prompts, [])


def fit_to_context(candidates: Candidates, tokenizer: Tokenizer, longest: int) -> Prompts:
    """Keep prompts of at most `longest` tokens, BOS included; without a held-out file hold out a fifth by hash.

    Prompts that do not fit leave before the split, so that the refusal of fewer than ten counts usable ones.
    """
    train, dropped = fit_prompts(candidates.train, tokenizer, longest - 1)
    shared = list[str]()
    if candidates.heldout is None:
        train, heldout, note = split_prompts(train)
    else:
        heldout, odd = fit_prompts(candidates.heldout, tokenizer, longest - 1)
        note = f"held-out prompts: {odd}" if odd else None
        if candidates.heldout is not candidates.train:  # a problem of the exact lab has no other prompts
            shared = tell_trained_on(train, heldout, "held-out prompts", "remove them from one of the files")
    return Prompts(train, heldout, [*candidates.notes, *(n for n in (dropped, note) if n), *shared])


def tell_trained_on(train: list[Prompt], measured: list[Prompt], what: str, todo: str) -> list[str]:
    """Note on prompts to measure on, called `what`, that are training prompts, too; none or one."""
    return shared_note({prompt.text for prompt in train}, [prompt.text for prompt in measured], what, todo)


@dataclass(frozen=True)
class PromptStream:
    """Batches of training prompts: each pass in a new order; a batch may begin in one pass and end in the next."""

    prompts: list[Prompt]
    tokenizer: Tokenizer
    seed: int
    size: int
    responses: int
    device: torch.device

    def __call__(self, step: int) -> PromptBatch:
        """Prompts of an iteration; they depend on (seed, step) alone."""
        first, count = step * self.size, len(self.prompts)
        orders = {epoch: self._order(epoch) for epoch in range(first // count, (first + self.size - 1) // count + 1)}
        picked = [orders[at // count][at % count] for at in range(first, first + self.size)]
        return batch([self.prompts[i] for i in picked], self.tokenizer, self.device, self.responses)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = torch.randperm(len(self.prompts), generator=generator(self.seed, "prompts", epoch)).tolist()
        return order


def batch(prompts: list[Prompt], tokenizer: Tokenizer, device: torch.device, responses: int = 1) -> PromptBatch:
    """Encode prompts, `responses` rows each, with their columns."""
    texts: list[str] = [prompt.text for prompt in prompts]
    columns: list[dict[str, Any]] = [dict(prompt.columns) for prompt in prompts]
    spoken = [prompt.spoken for prompt in prompts]
    return PromptBatch.build(texts, columns, tokenizer, spoken=spoken, responses=responses, device=device)
