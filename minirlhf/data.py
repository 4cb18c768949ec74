"""What a run reads: documents to pretrain on, prompts to train on, prompts held out for evaluation.

Which file serves for what, and what happens when one is missing, is decided here and said in `notes`, which the run
prints: nothing is dropped, split or repeated in silence.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from minirlhf.config import CorpusConfig
from minirlhf.generate import PromptBatch
from minirlhf.streams import generator
from minirlhf.text.corpus import (
    Document,
    Prompt,
    fit_prompts,
    is_packaged,
    openings,
    read_documents,
    read_prompts,
    split_documents,
    split_prompts,
)
from minirlhf.text.tokenizer import Tokenizer

@dataclass(frozen=True)
class Documents:
    """Documents for pretraining and for its held-out loss."""

    train: list[Document]
    heldout: list[Document]


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts that fit the context, and what was done to get them."""

    train: list[Prompt]
    heldout: list[Prompt]
    notes: list[str]


def load_documents(corpus: CorpusConfig) -> Documents:
    """Read `corpus.text` and hold out `corpus.heldout_share` of it by hash (more of a small one)."""
    return Documents(*split_documents(read_documents(corpus.text, corpus.errors), corpus.heldout_share))


def load_prompts(
    corpus: CorpusConfig, documents: Documents, tokenizer: Tokenizer, longest: int, reserved: Collection[str]
) -> Prompts:
    """Prompts of at most `longest` tokens, BOS included; `reserved` = names that no column may have.

    In this order: the prompts of the config; those that come with a packaged corpus; openings of held-out documents.
    Without a held-out file a fifth is held out by hash.
    """
    notes = list[str]()
    heldout: list[Prompt] | None = None
    source = corpus.prompts or (corpus.text if is_packaged(corpus.text) else None)
    if source is None:
        train = openings(documents.heldout, corpus.opening_words)
        notes.append(f"no prompts given: {len(train)} openings of held-out documents serve")
    else:
        train = read_prompts(source, corpus.errors, which="prompts", reserved=reserved)
        other = corpus.heldout_prompts or (source if is_packaged(source) else None)
        if other is not None:
            heldout = read_prompts(other, corpus.errors, which="heldout_prompts", reserved=reserved)
    # What does not fit leaves before the split, so that "under ten" counts prompts that can be used.
    train, note = fit_prompts(train, tokenizer, longest - 1)
    notes += [note] if note else []
    if heldout is None:
        train, heldout, note = split_prompts(train)
    else:
        heldout, note = fit_prompts(heldout, tokenizer, longest - 1)
    notes += [note] if note else []
    return Prompts(train, heldout, notes)


@dataclass(frozen=True)
class PromptStream:
    """Training prompts in batches: every pass in a fresh order, a batch goes on into the next pass where one ends."""

    prompts: list[Prompt]
    tokenizer: Tokenizer
    seed: int
    size: int
    responses: int
    device: torch.device

    def __call__(self, step: int) -> PromptBatch:
        """The prompts of an iteration: they depend on (seed, step) alone."""
        first, count = step * self.size, len(self.prompts)
        orders = {epoch: self._order(epoch) for epoch in range(first // count, (first + self.size - 1) // count + 1)}
        picked = [orders[at // count][at % count] for at in range(first, first + self.size)]
        return batch([self.prompts[i] for i in picked], self.tokenizer, self.device, self.responses)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = torch.randperm(
            len(self.prompts), generator=generator(self.seed, "prompts", epoch)
        ).tolist()
        return order


def batch(prompts: list[Prompt], tokenizer: Tokenizer, device: torch.device, responses: int = 1) -> PromptBatch:
    """Encode prompts with their columns."""
    texts: list[str] = [prompt.text for prompt in prompts]
    columns: list[dict[str, Any]] = [dict(prompt.columns) for prompt in prompts]
    return PromptBatch.build(texts, columns, tokenizer, responses=responses, device=device)
