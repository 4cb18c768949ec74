"""Supervised fine-tuning: a base learns to continue prompts as demonstrations do (arXiv 2203.02155, step 1).

The loss is the cross-entropy of the completion's tokens alone, its EOS included: a prompt is given, not to be learned.
Demonstrations are packed end to end, each seeing itself only, so that no padding is computed. Every completion token of
a batch weighs the same. AdamW with warm-up and a cosine schedule.

Not here: reading files (text/comparisons.py), and what is saved (base.py).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from minirlhf.config.schema import SFTConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.models.lora import Trunk, dropping
from minirlhf.models.optimizer import AdamW
from minirlhf.stages.pretrain import heldout_loss, token_losses, warm_cosine
from minirlhf.streams import generator
from minirlhf.text.comparisons import Demonstration, left_out
from minirlhf.text.tokenizer import Tokenizer, text_ids


@dataclass(frozen=True)
class Example:
    """Demonstration as ids, [BOS] prompt completion EOS; the completion begins at index `start`."""

    ids: list[int]
    start: int
    prompt: str = field(default="", compare=False)

    @property
    def content(self) -> Hashable:
        return tuple(self.ids[self.start :])


def encode_demonstrations(
    demonstrations: Sequence[Demonstration], tokenizer: Tokenizer, longest: int
) -> tuple[list[Example], list[str]]:
    """Encode examples of at most `longest` tokens; return them, and notes on dropped rows (InputError if all are)."""
    examples, dropped = list[Example](), list[str]()
    for d in demonstrations:
        ids = text_ids(tokenizer, d.prompt, d.completion, True, d.spoken, d.where)
        if len(ids) > longest:
            dropped.append(f"{d.where} ({len(ids)} tokens)")
        else:
            examples.append(Example(ids, len(tokenizer.prompt_ids([d.prompt], [d.spoken])[0]), d.prompt))
    if not examples:
        raise InputError("no demonstration fits", dropped[0] if dropped else "", "raise model.max_positions")
    todo = f"{longest} tokens fit; raise model.max_positions"
    return examples, left_out(dropped, len(demonstrations), "demonstrations", todo)


@dataclass
class SFTState:
    """Model, optimiser and counters; complete between two yields of `train`."""

    model: Trunk
    optimizer: AdamW
    step: int = 0
    tokens: int = 0  # completion tokens learned from

    @classmethod
    def start(cls, model: Trunk, config: SFTConfig) -> "SFTState":
        return cls(model, AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay))


def sft_steps(examples: Sequence[Example], config: SFTConfig) -> int:
    """Optimiser steps of a training on these examples."""
    return config.epochs * math.ceil(len(examples) / config.batch_size)


def train(
    state: SFTState, examples: Sequence[Example], config: SFTConfig, dropout: float = 0.0
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train for `sft.epochs`, each in a fresh order; yield (step, {loss in nats a token}). dropout: of adapters."""
    per_epoch, total = math.ceil(len(examples) / config.batch_size), sft_steps(examples, config)
    state.model.train()
    while state.step < total:
        epoch, at = divmod(state.step, per_epoch)
        order = torch.randperm(len(examples), generator=generator(config.seed, "sft", epoch)).tolist()
        batch = [examples[i] for i in order[at * config.batch_size : (at + 1) * config.batch_size]]
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr * warm_cosine(state.step, total, config.warmup, 0.05)
        with dropping(state.model, dropout, generator(config.seed, "sft-dropout", state.step)):
            nats, count = token_losses(state.model, [e.ids for e in batch], [e.start for e in batch])
        loss = nats / count
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        read, size = torch.stack([loss.detach(), norm]).tolist()
        if not (math.isfinite(read) and math.isfinite(size)):
            raise DivergedError(f"SFT loss = {read}, gradient norm = {size}", f"step {state.step + 1}", "lower sft.lr")
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += count
        yield state.step, {"loss": read}


def demonstration_loss(model: Trunk, examples: Sequence[Example], size: int) -> float:
    """Mean cross-entropy of examples, nats per completion token, computed `size` examples at a time."""
    return heldout_loss(model, [e.ids for e in examples], size, [e.start for e in examples])
