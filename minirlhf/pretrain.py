"""The base model: next-token training on documents, a fixed number of steps (never the clock).

Documents become windows [BOS] text [EOS]; a document longer than a window is cut and its pieces follow each other
without BOS. A batch takes windows of similar length, so that little of it is padding. Loss: cross-entropy in nats a
token. AdamW with warm-up and a cosine schedule.

Not here: packing (several documents in one row), mixed precision.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.config import PretrainConfig
from minirlhf.errors import DivergedError
from minirlhf.models.transformer import Transformer
from minirlhf.streams import generator
from minirlhf.text.tokenizer import Tokenizer

POOL = 16  # batches whose windows are sorted by length together: enough to save padding, few enough to stay random


@dataclass
class PretrainState:
    """Model, optimiser, schedule and counters; complete between two yields of `train`."""

    model: Transformer
    optimizer: torch.optim.AdamW
    schedule: LambdaLR
    step: int = 0
    tokens: int = 0

    @classmethod
    def start(cls, model: Transformer, config: PretrainConfig) -> "PretrainState":
        """Weight decay on matrices only: on norms it would pull the scale to 0 for no reason."""
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))
        return cls(model, optimizer, LambdaLR(optimizer, lambda step: rate(step, config)))


def rate(step: int, config: PretrainConfig) -> float:
    """The share of lr at a step of pretraining."""
    return warm_cosine(step, config.steps, config.warmup, config.final_lr)


def warm_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """The share of a learning rate: linear warm-up (at most half of all steps), then half a cosine down to `final`."""
    warmup = min(warmup, (steps + 1) // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def windows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Token windows of at most `length`: [BOS] text [EOS], cut where longer; overlapping by one token, so that
    every token but a BOS is predicted once."""
    cut = []
    for ids in tokenizer.encode_batch(list(texts)):
        ids = [tokenizer.bos_id, *ids, tokenizer.eos_id]
        cut += [ids[i : i + length] for i in range(0, max(1, len(ids) - 1), length - 1)]
    return cut


def batches(data: Sequence[list[int]], size: int, seed: int, pad: int) -> Iterator[Tensor]:
    """Endless (b,T) batches, right-padded, each pass over the data in a fresh order."""
    epoch = 0
    while True:
        order: list[int] = torch.randperm(len(data), generator=generator(seed, "pretrain", epoch)).tolist()
        shuffled = []
        for start in range(0, len(order), size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lambda i: len(data[i]))
            shuffled += [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(shuffled), generator=generator(seed, "pretrain-batches", epoch)).tolist():
            yield pad_right([data[row] for row in shuffled[i]], pad)
        epoch += 1


def pad_right(rows: Sequence[list[int]], pad: int) -> Tensor:
    """Lists of ids -> (b,T), padded on the right: under a causal mask no real token sees the padding."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def token_losses(model: Transformer, ids: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats and the number of predicted tokens of a right-padded batch (b,T).

    Only real positions reach the LM head, V times wider than everything else.
    """
    targets = ids[:, 1:]
    real = targets != pad
    hidden = model(ids[:, :-1])[real]  # (n,W)
    logits = hidden @ model.embed_tokens.weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets[real], reduction="sum"), real.sum()


def train(
    state: PretrainState, data: Sequence[list[int]], tokenizer: Tokenizer, config: PretrainConfig, device: torch.device
) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps until `pretrain.steps`; yields (step, {loss in nats a token, lr, tokens, tokens_per_s}) after each."""
    stream = batches(data, config.batch_size, config.seed, tokenizer.pad_id)
    for _ in range(state.step):
        next(stream)  # a resumed run continues where the data was
    state.model.train()
    while state.step < config.steps:
        started = perf_counter()
        ids = next(stream).to(device)
        total, count = token_losses(state.model, ids, tokenizer.pad_id)
        loss = total / count
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        read, size, tokens = torch.stack([loss.detach(), norm, count]).tolist()
        if not (math.isfinite(read) and math.isfinite(size)):
            raise DivergedError(
                f"pretraining loss = {read}, gradient norm = {size}",
                f"step {state.step + 1}",
                "try a lower pretrain.lr",
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        lr = state.schedule.get_last_lr()[0]
        state.schedule.step()
        state.step += 1
        state.tokens += int(tokens)
        seconds = perf_counter() - started
        yield state.step, {"loss": read, "lr": float(lr), "tokens": state.tokens, "tokens_per_s": tokens / seconds}


@torch.no_grad()
def heldout_loss(
    model: Transformer, data: Sequence[list[int]], tokenizer: Tokenizer, size: int, device: torch.device
) -> float:
    """Mean cross-entropy in nats a token over held-out windows."""
    model.eval()
    total, count = 0.0, 0
    ordered = sorted(data, key=len)
    for start in range(0, len(ordered), size):
        ids = pad_right(ordered[start : start + size], tokenizer.pad_id).to(device)
        nats, tokens = token_losses(model, ids, tokenizer.pad_id)
        total, count = total + float(nats), count + int(tokens)
    return total / max(1, count)
