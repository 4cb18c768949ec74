"""Reward model: training from comparisons (N17).

Bradley-Terry: P(chosen is better) = sigmoid(score(chosen) - score(rejected) - margin); the loss is minus the log of it,
smoothed labels and label probabilities mixed in. Training starts from a base, stops early on held-out accuracy and
keeps the best weights; then scores are normalised to mean 0 and standard deviation 1 over the base's own responses.
Not here: the report that says how far to trust it (reward_report.py), reading files and saving models (preferences.py).
"""

import copy
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minirlhf.config.schema import RewardModelConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.models.lora import dropping
from minirlhf.models.optimizer import AdamW
from minirlhf.models.scorer import Scorer
from minirlhf.stages.pretrain import warm_cosine
from minirlhf.streams import generator
from minirlhf.tensors import ROUNDING
from minirlhf.text.comparisons import TIE, Comparison, left_out
from minirlhf.text.tokenizer import Conversation, Tokenizer, text_ids


@dataclass(frozen=True)
class Pair:
    """Comparison as ids: [BOS] prompt completion EOS, for the chosen and the rejected completion."""

    chosen: list[int]
    rejected: list[int]
    margin: float
    probability: float
    gap: float | None = None
    prompt: str = field(default="", compare=False)
    spoken: Conversation | None = field(default=None, compare=False)

    @property
    def content(self) -> Hashable:
        """Both sides, whichever is chosen."""
        return frozenset((tuple(self.chosen), tuple(self.rejected)))

    @property
    def tie(self) -> bool:
        """True if neither side is better: what a model prefers is then neither right nor wrong."""
        return self.probability == TIE


def encode_pairs(comparisons: Sequence[Comparison], tokenizer: Tokenizer, longest: int) -> tuple[list[Pair], list[str]]:
    """Encode pairs of at most `longest` tokens a side; return them, and notes on dropped rows (InputError if all)."""
    pairs, dropped = [], []
    for c in comparisons:
        chosen, rejected = (text_ids(tokenizer, c.prompt, s, True, c.spoken, c.where) for s in (c.chosen, c.rejected))
        if max(len(chosen), len(rejected)) > longest:
            dropped.append(f"{c.where} ({max(len(chosen), len(rejected))} tokens)")
        else:
            pairs.append(Pair(chosen, rejected, c.margin, c.probability, c.gap, c.prompt, c.spoken))
    if not pairs:
        raise InputError("no comparison fits", dropped[0] if dropped else "", "raise model.max_positions")
    todo = f"{longest} tokens fit; raise model.max_positions"
    return pairs, left_out(dropped, len(comparisons), "comparisons", todo)


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor, probability: Tensor, smoothing: float = 0.0
) -> Tensor:
    """-q log sigmoid(d) - (1 - q) log sigmoid(-d), d = chosen - rejected - margin, q = probability after smoothing.

    Scores (n,), margins (n,) in score units, probabilities (n,) that `chosen` is better -> (n,) nats; finite at any
    difference. smoothing = the share of labels taken to be wrong.
    """
    d = chosen - rejected - margin
    q = probability * (1 - smoothing) + (1 - probability) * smoothing
    return -q * F.logsigmoid(d) - (1 - q) * F.logsigmoid(-d)


@dataclass
class RewardModelState:
    """Model, optimiser and counters, and the best weights so far; complete between two yields of `train`."""

    model: Scorer
    optimizer: AdamW
    step: int = 0
    best: float = -1.0  # held-out accuracy
    best_step: int = 0
    worse: int = 0  # evaluations on held-out pairs since then
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, model: Scorer, config: RewardModelConfig) -> "RewardModelState":
        return cls(model, AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay))


def reward_model_steps(pairs: Sequence[Pair], config: RewardModelConfig) -> int:
    """Optimiser steps of a training on these comparisons, if nothing ends it early."""
    return config.epochs * math.ceil(len(pairs) / config.batch_size)


def train(
    state: RewardModelState,
    pairs: Sequence[Pair],
    heldout: Sequence[Pair],
    config: RewardModelConfig,
    dropout: float = 0.0,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train until `epochs` are done or the held-out accuracy has not risen for `patience` evaluations.

    Yields (step, {loss, accuracy, heldout_accuracy if it was measured}). Afterwards the model has its best weights: the
    last ones, if all held-out pairs are ties, which have no accuracy.
    """
    decided = [pair for pair in heldout if not pair.tie]
    per_epoch = math.ceil(len(pairs) / config.batch_size)
    total = reward_model_steps(pairs, config)
    every = max(1, min(per_epoch, total // 10))
    while state.step < total and state.worse < config.patience:
        epoch, at = divmod(state.step, per_epoch)
        order = torch.randperm(len(pairs), generator=generator(config.seed, "reward-model", epoch)).tolist()
        batch = [pairs[i] for i in order[at * config.batch_size : (at + 1) * config.batch_size]]
        with dropping(state.model, dropout, generator(config.seed, "reward-model-dropout", state.step)):
            metrics = update_scorer(state, batch, config, total)
        if not decided:
            state.best_step = state.step
        elif state.step % every == 0 or state.step == total:
            metrics["heldout_accuracy"] = accuracy(margins(state.model, decided))
            if metrics["heldout_accuracy"] > state.best:
                state.best, state.best_step, state.worse = metrics["heldout_accuracy"], state.step, 0
                state.best_weights = copy.deepcopy(state.model.state_dict())
            else:
                state.worse += 1
        yield state.step, metrics
    state.model.load_state_dict(state.best_weights or state.model.state_dict())


def update_scorer(
    state: RewardModelState, batch: Sequence[Pair], config: RewardModelConfig, total: int
) -> dict[str, float]:
    """Make one optimiser step on a batch of pairs; return its loss (nats a pair) and accuracy (NaN if all are ties)."""
    model = state.model.train()
    device = model.score.weight.device
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * warm_cosine(state.step, total, config.warmup, 0.05)
    chosen, rejected = model([p.chosen for p in batch] + [p.rejected for p in batch]).chunk(2)
    margin, probability = (
        torch.tensor([getattr(p, name) for p in batch], device=device) for name in ("margin", "probability")
    )
    loss = bradley_terry(chosen, rejected, margin, probability, config.label_smoothing).mean()
    centre = (chosen + rejected).square().mean()  # the loss sees differences alone, so nothing else keeps scores near 0
    (loss + config.centring * centre).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    right = (chosen > rejected).to(loss.dtype)[probability != TIE].mean()
    values = torch.stack([loss.detach(), norm.to(loss.dtype), right]).tolist()
    if not all(math.isfinite(value) for value in values[:2]):
        raise DivergedError(f"reward-model loss = {values[0]}", f"step {state.step + 1}", "try a lower reward_model.lr")
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return {"loss": values[0], "accuracy": values[2]}


def margins(model: Scorer, pairs: Sequence[Pair]) -> Tensor:
    """score(chosen) - score(rejected) of each pair, before normalisation: (n,) float64 on the CPU."""
    scores = model.eval().scores([p.chosen for p in pairs] + [p.rejected for p in pairs], normalised=False)
    chosen, rejected = scores.cpu().double().chunk(2)
    return chosen - rejected


def accuracy(margins: Tensor) -> float:
    """Share of pairs whose chosen side scores higher; equal scores count half. NaN for no pair."""
    return float((margins > 0).double().mean() + 0.5 * (margins == 0).double().mean())


@torch.no_grad()
def normalise(model: Scorer, rows: Sequence[Sequence[int]]) -> None:
    """Set the model's mean and std, so that its scores have mean 0 and std 1 over these rows of ids.

    The rows are the reference's own responses: a reward of 0 is then an average response before training.
    """
    scores = model.eval().scores(rows, normalised=False).cpu().double()
    model.mean.copy_(scores.mean())
    spread = float(scores.std()) if len(rows) > 1 else 0.0
    model.std.fill_(spread if spread > ROUNDING * float(scores.abs().max()) else 1.0)
