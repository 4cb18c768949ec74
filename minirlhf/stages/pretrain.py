"""Pretraining of the base: next-token training on documents, for a fixed number of steps (never the clock).

Documents become windows [BOS] text [EOS]; a document longer than a window is cut, and its later pieces have no BOS.
A batch is packed, so that no padding is computed, and is drawn from windows of all lengths. Loss: cross-entropy in nats
per token. AdamW with warm-up and a cosine schedule, by which embedding and norms learn faster than the rest.

Not here: the first weights (first_weights.py), mixed precision, reading documents (data.py), what is saved (base.py).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.config.schema import PretrainConfig
from minirlhf.errors import DivergedError
from minirlhf.models.head import summed_cross_entropy
from minirlhf.models.lora import Trunk
from minirlhf.models.optimizer import AdamW
from minirlhf.models.packing import Packing
from minirlhf.models.transformer import Transformer
from minirlhf.streams import generator
from minirlhf.text.tokenizer import Tokenizer

FASTER = 3.0  # embedding and norms learn so many times as fast as the blocks' matrices


@dataclass
class PretrainState:
    """Model, optimiser, schedule and counters; complete between two yields of `train`."""

    model: Transformer
    optimizer: AdamW
    schedule: LambdaLR
    step: int = 0
    tokens: int = 0

    @classmethod
    def start(cls, model: Transformer, config: PretrainConfig) -> "PretrainState":
        """Start from a model: AdamW with weight decay on matrices only; on norms it would pull their scale to 0."""
        embedding = model.embed_tokens.weight
        matrices = [p for p in model.parameters() if p.ndim >= 2 and p is not embedding]
        others = [p for p in model.parameters() if p.ndim < 2]
        decay = config.weight_decay
        groups = [
            {"params": [embedding], "lr": FASTER * config.lr, "weight_decay": decay / FASTER},
            {"params": others, "lr": FASTER * config.lr, "weight_decay": 0.0},
            {"params": matrices, "weight_decay": decay},
        ]
        optimizer = AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))
        return cls(model, optimizer, LambdaLR(optimizer, lambda step: rate(step, config)))


def rate(step: int, config: PretrainConfig) -> float:
    """Factor of `pretrain.lr` at a step, between 0 and 1."""
    return warm_cosine(step, config.steps, config.warmup, config.final_lr)


def warm_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """Factor of a learning rate at a step: linear warm-up, then half a cosine down to `final`.

    w = min(warmup, (steps + 1) // 2), p = (step - w) / (steps - w):
    (step + 1) / w before w, then final + (1 - final) (1 + cos(pi p)) / 2.
    """
    warmup = min(warmup, (steps + 1) // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def windows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """Token windows [BOS] text [EOS], longer ones cut into pieces of at most `length` tokens.

    Pieces overlap by one token, so that every token but a BOS is predicted exactly once.
    """
    cut = []
    for ids in tokenizer.encode_batch(list(texts)):
        ids = [*tokenizer.start, *ids, tokenizer.eos_id]
        cut += [ids[i : i + length] for i in range(0, max(1, len(ids) - 1), length - 1)]
    return cut


def batches(data: Sequence[list[int]], size: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield batches of at most `size` windows without end, each pass over the data in a fresh order."""
    epoch = 0
    while True:
        order: list[int] = torch.randperm(len(data), generator=generator(seed, "pretrain", epoch)).tolist()
        for start in range(0, len(order), size):
            yield [data[i] for i in order[start : start + size]]
        epoch += 1


def token_losses(
    model: Trunk, rows: Sequence[Sequence[int]], starts: Sequence[int] | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropies in nats, and the number of predicted tokens n.

    Predicted are the tokens of each row from its index in `starts` on (default 1: all but the first), each from the
    tokens before it in its row. Rows are packed end to end, N tokens in all, without padding.
    """
    device = model.embed_tokens.weight.device
    packing = Packing.of([len(row) - 1 for row in rows], device)
    hidden = model.packed(torch.tensor([token for row in rows for token in row[:-1]]).to(device), packing)  # (N,W)
    targets = [token for row, start in zip(rows, starts or [1] * len(rows), strict=True) for token in row[start:]]
    if starts is not None:
        learned = [at >= start - 1 for row, start in zip(rows, starts, strict=True) for at in range(len(row) - 1)]
        hidden = hidden[torch.tensor(learned).nonzero().squeeze(1).to(device)]
    return summed_cross_entropy(model, hidden, torch.tensor(targets).to(device)), len(targets)


def train(
    state: PretrainState, data: Sequence[list[int]], config: PretrainConfig
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train until `pretrain.steps`; yield (step, {loss in nats per token, lr, tokens, tokens_per_s}) after each."""
    stream = batches(data, config.batch_size, config.seed)
    for _ in range(state.step):
        next(stream)  # progress that was saved continues with the batch that would have come next
    state.model.train()
    while state.step < config.steps:
        started = perf_counter()
        total, count = token_losses(state.model, next(stream))
        loss = total / count
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
        read, size = torch.stack([loss.detach(), norm]).tolist()
        if not (math.isfinite(read) and math.isfinite(size)):
            raise DivergedError(
                f"pretraining loss = {read}, gradient norm = {size}",
                f"step {state.step + 1}",
                "try a lower pretrain.lr",
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        lr = state.schedule.get_last_lr()[-1]  # of the last group, which learns at `pretrain.lr` itself
        state.schedule.step()
        state.step += 1
        state.tokens += count
        seconds = perf_counter() - started
        yield state.step, {"loss": read, "lr": float(lr), "tokens": state.tokens, "tokens_per_s": count / seconds}


@torch.no_grad()
def heldout_loss(model: Trunk, rows: Sequence[Sequence[int]], size: int, starts: Sequence[int] | None = None) -> float:
    """Mean cross-entropy of held-out rows, nats per token (tokens from `starts` on), computed `size` rows at a time."""
    model.eval()
    total, count = 0.0, 0
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for at in range(0, len(order), size):
        part = order[at : at + size]
        nats, tokens = token_losses(model, [rows[i] for i in part], starts and [starts[i] for i in part])
        total, count = total + float(nats), count + tokens
    return total / max(1, count)
