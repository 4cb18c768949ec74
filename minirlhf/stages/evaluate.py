"""Evaluation: reference against policy on the same held-out prompts, with the same random numbers.

`evaluate` returns the content of evaluation.json and the completions side by side. KL is always exact (summed over the
vocabulary, then over the tokens of the policy's own responses; nats per sequence, at the training temperature),
whatever estimator the run trained with. Intervals are bootstrap percentiles over prompts. Not here: J = score - beta KL
and best-of-n (objective.py), and which prompts and rewards a run is evaluated with (pipeline/evaluation.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.families import TransformerConfig
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.shape import Scores
from minirlhf.stages.divergence import sequence_kl
from minirlhf.stages.intervals import t_interval
from minirlhf.streams import generator
from minirlhf.tensors import ROUNDING
from minirlhf.text.tokenizer import Tokenizer

ROWS = 64  # responses that share a stream of random numbers, and are generated together at least
TOGETHER = 1 << 26  # bytes of keys, values and logits that more of them may take: a small model decodes faster so
MANY = 100  # prompts from which on a percentile bootstrap covers what it says


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling in an evaluation; seed fixes every random number."""

    tokenizer: Tokenizer
    max_new_tokens: int
    seed: int

    def rollouts(self, model: Policy, prompts: PromptBatch, stream: str) -> Iterator[Rollout]:
        """Yield responses to the prompts, as many at a time as TOGETHER allows, each ROWS from numbers of their own."""
        tokens, weight = prompts.ids.shape[1] + self.max_new_tokens, model.model.embed_tokens.weight.itemsize
        streams = streams_at_a_time(model.model.config, tokens, weight)
        for index, part in enumerate(prompts.parts(streams * ROWS)):
            first, count = index * streams, len(part.texts)
            random = (generator(self.seed, stream, first + i) for i in range(-(-count // ROWS)))
            uniform = torch.cat([torch.rand(ROWS, self.max_new_tokens, generator=g) for g in random])[:count]
            yield generate(model, part, self.tokenizer, max_new_tokens=self.max_new_tokens, uniform=uniform)


def streams_at_a_time(model: TransformerConfig, tokens: int, weight: int) -> int:
    """Number of ROWS that are decoded together: rows of so many tokens, weights of so many bytes."""
    cache = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_size * tokens * weight
    return max(1, TOGETHER // (ROWS * (cache + 16 * model.vocab_size)))  # logits four times over, see memory.py


@dataclass(frozen=True)
class Evaluation:
    """summary: content of evaluation.json without the times; rows: prompt, both completions, both scores."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def evaluate(
    policy: Policy,
    reference: Reference,
    prompts: PromptBatch,
    rewards: Callable[[Sequence[Rollout]], list[Scores]],
    sampling: Sampling,
    resamples: int,
) -> Evaluation:
    """Sample one response a prompt from both sides, score and measure them.

    rewards: called once for all rollouts of a side. resamples: of the bootstrap interval.
    """
    sides = {"reference": reference.policy, "policy": policy}
    rollouts = {name: list(sampling.rollouts(model, prompts, "eval")) for name, model in sides.items()}
    scores = {name: torch.cat([score_or_nan(s) for s in rewards(rolls)]) for name, rolls in rollouts.items()}
    kl = torch.cat([sequence_kl(policy, reference, rollout) for rollout in rollouts["policy"]])
    ids = {name: [ids for r in rolls for ids in r.completion_id_lists] for name, rolls in rollouts.items()}
    texts = {name: [text for r in rolls for text in r.completions] for name, rolls in rollouts.items()}
    ended = {name: torch.cat([r.terminated for r in rolls]) for name, rolls in rollouts.items()}
    bigrams = {name: bigrams_of(rows, ended[name].tolist()) for name, rows in ids.items()}
    equal = min(len(b) for b in bigrams.values())
    gain = gains(scores["reference"], scores["policy"])
    summary: dict[str, Any] = {"prompts": len(kl)}
    for name in sides:
        summary[name] = {
            **score_statistics(scores[name][~scores[name].isnan()]),
            "length_mean": sum(len(i) for i in ids[name]) / len(ids[name]),
            "eos_rate": ended[name].cpu().double().mean().item(),
            "distinct_2": distinct_share(bigrams[name][:equal]),
            "distinct_share": distinct_share(texts[name]),
        }
    summary |= {
        "score_pairs": len(gain),
        "score_gain": mean_or_none(gain),
        "score_gain_ci95": bootstrap_interval(gain, resamples, generator(sampling.seed, "bootstrap", 0)),
        "win_rate": mean_or_none((gain > 0).double() + 0.5 * (gain == 0).double()),
        "ties": int((gain == 0).sum()),
        "kl_nats_per_sequence": kl.mean().item(),
    }
    rows = [
        {"prompt": prompt, "reference": before, "policy": after, "reference_score": old, "policy_score": new}
        for prompt, before, after, old, new in zip(
            prompts.texts, texts["reference"], texts["policy"],
            json_scores(scores["reference"]), json_scores(scores["policy"]), strict=True,
        )
    ]  # fmt: skip
    return Evaluation(summary, rows)


def gains(before: Tensor, after: Tensor) -> Tensor:
    """Differences after - before of the pairs that both have a score: (B,) each -> (n,), 0 where it is rounding.

    A text that both sides wrote may be scored beside other texts, which moves its last bits: that is a draw.
    """
    both = ~(before.isnan() | after.isnan())
    before, after = before[both], after[both]
    differ = (after - before).abs() > ROUNDING * torch.maximum(before.abs(), after.abs())
    return torch.where(differ, after - before, 0.0)


def score_or_nan(scored: Scores) -> Tensor:
    """Scores (B,), NaN where no reward model applied."""
    return torch.where(scored.valid, scored.total, float("nan")).cpu().double()


def json_scores(scores: Tensor) -> list[float | None]:
    """Scores for JSON: None where no reward applied."""
    return [None if score != score else score for score in scores.tolist()]


def score_statistics(scores: Tensor) -> dict[str, float | None]:
    """Mean, unbiased standard deviation and 90th percentile (linear interpolation) of some scores; None if unknown."""
    return {
        "score_mean": mean_or_none(scores),
        "score_std": scores.std().item() if len(scores) > 1 else None,
        "score_p90": scores.quantile(0.9).item() if len(scores) else None,
    }


def mean_or_none(x: Tensor) -> float | None:
    """Mean of x (n,); None for an empty one: nothing was measured, and 0 would look like a measurement."""
    return x.mean().item() if len(x) else None


def bootstrap_interval(gains: Tensor, resamples: int, generator: torch.Generator) -> list[float] | None:
    """95 % interval of the mean of gains (n,), [low, high]: a percentile bootstrap, prompts resampled with replacement.

    Of fewer than MANY gains, for which a bootstrap is too narrow, Student's t; None for fewer than two.
    """
    if len(gains) < MANY:
        return t_interval(gains)
    picks = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    means = gains[picks].mean(dim=1)
    return [means.quantile(0.025).item(), means.quantile(0.975).item()]


def bigrams_of(rows: Sequence[list[int]], ended: Sequence[bool]) -> list[tuple[int, int]]:
    """Bigrams of token ids inside each response, without the stop of one that ended, in the order of the responses."""
    texts = [row[: len(row) - end] for row, end in zip(rows, ended, strict=True)]
    return [pair for ids in texts for pair in pairwise(ids)]


def distinct_share(items: Sequence[object]) -> float | None:
    """Share of distinct items, None without any; it falls with the number of items, so compare only equal numbers."""
    return len(set(items)) / len(items) if items else None
