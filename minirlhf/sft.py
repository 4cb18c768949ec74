"""Supervised fine-tuning: a base learns to continue prompts as demonstrations do (step 1 of 2203.02155).

The loss is the cross-entropy of the completion's tokens alone, its EOS included: a prompt is given, not to be learned.
Demonstrations are packed: several texts share a row, each seeing itself only, so that little of a batch is padding.
Every completion token weighs the same, whatever row it stands in. AdamW with warm-up and a cosine schedule.

Not here: reading files (text/comparisons.py), what is kept on disk (base.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minirlhf.config import SFTConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.models.transformer import Transformer
from minirlhf.pretrain import warm_cosine
from minirlhf.streams import generator
from minirlhf.text.comparisons import Demonstration
from minirlhf.text.tokenizer import Tokenizer, text_ids


@dataclass(frozen=True)
class Example:
    """A demonstration as ids, [BOS] prompt completion EOS; the completion begins at `start`."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Packed:
    """Rows of packed texts: ids (b,T); segments (b,T), which text of its row a token is of, 0 = padding; learned (b,T)
    True = a token of a completion."""

    ids: Tensor
    segments: Tensor
    learned: Tensor


def encode(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, longest: int
) -> tuple[list[Example], list[str]]:
    """Examples of at most `longest` tokens, and notes on what was left out (InputError if nothing is left)."""
    examples, dropped = list[Example](), list[str]()
    for d in demonstrations:
        ids = text_ids(tokenizer, d.prompt, d.completion, True)
        if len(ids) > longest:
            dropped.append(f"{d.where}: {len(ids)} tokens, {longest} fit: the row is left out")
        else:
            examples.append(Example(ids, len(text_ids(tokenizer, d.prompt, "", False))))
    if not examples:
        raise InputError("no demonstration fits", dropped[0] if dropped else "", "raise model.max_positions")
    more = [f"and {len(dropped) - 3} rows more like these"] if len(dropped) > 3 else []
    return examples, dropped[:3] + more


def fill_rows(examples: Sequence[Example], length: int) -> list[list[Example]]:
    """Texts in as few rows of `length` tokens as first-fit decreasing finds; every text is in one row, whole."""
    rows, room = list[list[Example]](), list[int]()
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        size = len(example.ids)
        at = next((i for i, left in enumerate(room) if left >= size), None)
        if at is None:
            rows.append([example])
            room.append(length - size)
        else:
            rows[at].append(example)
            room[at] -= size
    return rows


def pack(rows: Sequence[Sequence[Example]], pad: int, device: torch.device | None = None) -> Packed:
    """Rows of texts as tensors, padded to the longest of these rows."""
    width = max(sum(len(e.ids) for e in row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    segments = torch.zeros(len(rows), width, dtype=torch.long)
    learned = torch.zeros(len(rows), width, dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number, example in enumerate(row, start=1):
            end = at + len(example.ids)
            ids[r, at:end] = torch.tensor(example.ids)
            segments[r, at:end] = number
            learned[r, at + example.start : end] = True
            at = end
    return Packed(ids.to(device), segments.to(device), learned.to(device))


def completion_losses(model: Transformer, batch: Packed) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and the number of completion tokens of a batch: 0-d each."""
    learned = batch.learned[:, 1:]
    hidden = model(batch.ids, segments=batch.segments)[:, :-1][learned]  # (n,W): the token before a learned one
    logits = hidden @ model.embed_tokens.weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, batch.ids[:, 1:][learned], reduction="sum"), learned.sum()


@dataclass
class SFTState:
    """Model, optimiser and counters; complete between two yields of `train`."""

    model: Transformer
    optimizer: torch.optim.AdamW
    step: int = 0
    tokens: int = 0  # completion tokens learned from

    @classmethod
    def start(cls, model: Transformer, config: SFTConfig) -> "SFTState":
        return cls(model, torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay))


def steps_of(rows: Sequence[Sequence[Example]], config: SFTConfig) -> int:
    """Optimiser steps of a training over these rows."""
    return config.epochs * math.ceil(len(rows) / config.batch_size)


def train(
    state: SFTState, rows: Sequence[Sequence[Example]], tokenizer: Tokenizer, config: SFTConfig, device: torch.device
) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps until `sft.epochs` are done, each pass over the rows in a fresh order; yields (step, {loss in nats})."""
    per_epoch, total = math.ceil(len(rows) / config.batch_size), steps_of(rows, config)
    state.model.train()
    while state.step < total:
        epoch, at = divmod(state.step, per_epoch)
        order = torch.randperm(len(rows), generator=generator(config.seed, "sft", epoch)).tolist()
        picked = order[at * config.batch_size : (at + 1) * config.batch_size]
        batch = pack([rows[i] for i in picked], tokenizer.pad_id, device)
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr * warm_cosine(state.step, total, config.warmup, 0.05)
        nats, count = completion_losses(state.model, batch)
        loss = nats / count
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        read, size, tokens = torch.stack([loss.detach(), norm, count]).tolist()
        if not (math.isfinite(read) and math.isfinite(size)):
            raise DivergedError(f"SFT loss = {read}, gradient norm = {size}", f"step {state.step + 1}", "lower sft.lr")
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += int(tokens)
        yield state.step, {"loss": read}


@torch.no_grad()
def heldout_loss(
    model: Transformer, rows: Sequence[Sequence[Example]], tokenizer: Tokenizer, size: int, device: torch.device
) -> float:
    """Mean cross-entropy in nats a completion token."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), size):
        nats, tokens = completion_losses(model, pack(rows[start : start + size], tokenizer.pad_id, device))
        total, count = total + float(nats), count + int(tokens)
    return total / max(1, count)
