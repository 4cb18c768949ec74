"""Evaluation: reference against policy on the same held-out prompts, with the same random numbers; best-of-n beside it.

`evaluate` returns the content of evaluation.json and the completions side by side. KL is always exact (summed over the
vocabulary, then over the tokens of the policy's own responses; nats per sequence, at the training temperature),
whatever estimator the run trained with. Intervals are bootstrap percentiles over prompts. Not here: which prompts and
rewards a run is evaluated with (pipeline/evaluation.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin.kl import exact
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.shape import Scores
from minirlhf.rl.metrics import residual_std
from minirlhf.streams import generator
from minirlhf.tensors import ROUNDING, masked_sum
from minirlhf.text.tokenizer import Tokenizer

ROWS = 64  # responses generated and scored at a time


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling in an evaluation; seed fixes every random number."""

    tokenizer: Tokenizer
    max_new_tokens: int
    seed: int

    def rollouts(self, model: Policy, prompts: PromptBatch, stream: str) -> Iterator[Rollout]:
        """Yield responses to the prompts, ROWS at a time, each part from its own random numbers of this stream."""
        for index, part in enumerate(prompts.parts(ROWS)):
            random = generator(self.seed, stream, index)
            yield generate(model, part, self.tokenizer, max_new_tokens=self.max_new_tokens, generator=random)


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
    sides, tokenizer = {"reference": reference.policy, "policy": policy}, sampling.tokenizer
    rollouts = {name: list(sampling.rollouts(model, prompts, "eval")) for name, model in sides.items()}
    scores = {name: torch.cat([score_or_nan(s) for s in rewards(rolls)]) for name, rolls in rollouts.items()}
    kl = torch.cat([sequence_kl(policy, reference, rollout) for rollout in rollouts["policy"]])
    ids = {name: [ids for r in rolls for ids in r.completion_id_lists] for name, rolls in rollouts.items()}
    texts = {name: [text for r in rolls for text in r.completions] for name, rolls in rollouts.items()}
    ended = {name: torch.cat([r.terminated for r in rolls]) for name, rolls in rollouts.items()}
    bigrams = {name: bigrams_of(rows, tokenizer.eos_id) for name, rows in ids.items()}
    equal = min(len(b) for b in bigrams.values())
    gain = gains(scores["reference"], scores["policy"])
    summary: dict[str, Any] = {"prompts": len(kl)}
    for name in sides:
        summary[name] = {
            **score_statistics(scores[name][~scores[name].isnan()]),
            "length_mean": sum(len(i) for i in ids[name]) / len(ids[name]),
            "eos_rate": ended[name].double().mean().item(),
            "distinct_2": distinct_share(bigrams[name][:equal]),
            "distinct_share": distinct_share(texts[name]),
        }
    summary |= {
        "score_gain": mean_or_none(gain),
        "score_gain_ci95": bootstrap_interval(gain, resamples, generator(sampling.seed, "bootstrap", 0)),
        "win_rate": mean_or_none((gain > 0).double() + 0.5 * (gain == 0).double()),
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


@torch.no_grad()
def sequence_kl(policy: Policy, reference: Reference, rollout: Rollout) -> Tensor:
    """sum_t KL(pi(.|s_t), ref(.|s_t)) along the policy's own responses: (B,) nats per sequence.

    Its mean estimates KL(pi, ref) over whole responses without bias, with less variance than sum_t log pi/ref.
    """
    active, frozen = policy.forward_pass(rollout), reference.forward_pass(rollout)
    sums = []
    for row in range(len(rollout)):
        rows = slice(row, row + 1)
        kl = exact(active.log_dist(rows), frozen.log_dist(rows))
        sums.append(masked_sum(kl, rollout.mask[rows]))
    return torch.stack(sums).double()


@torch.no_grad()
def residual_spread(
    model: Policy,
    reference: Reference,
    prompts: PromptBatch,
    shaped_scores: Callable[[Rollout], tuple[Tensor, Tensor]],
    sampling: Sampling,
    beta: float,
) -> float | None:
    """`residual_std` of a model's own responses: std within a prompt of r - beta log(model/ref), score units.

    0 at the optimum. prompts: each prompt several times. shaped_scores: scores (B,), and True for rows that count (B,).
    """
    residuals, groups, counts = [], [], []
    for rollout in sampling.rollouts(model, prompts, "residual"):
        scores, rows = shaped_scores(rollout)
        log_ratio = model.forward_pass(rollout).logprobs - reference.forward_pass(rollout).logprobs
        residuals.append(scores - beta * torch.where(rollout.mask, log_ratio, 0.0).sum(dim=1))
        groups.append(rollout.group)
        counts.append(rows)
    return residual_std(torch.cat(residuals), torch.cat(groups), torch.cat(counts))


def best_of_n(
    reference: Reference,
    prompts: PromptBatch,
    samples: int,
    rewards: Callable[[Rollout], Scores],
    sampling: Sampling,
) -> list[dict[str, float | None]]:
    """Best of n responses of the reference, without any training: n, kl (upper bound, nats per sequence) and score.

    For n = 1, 2, 4, ... up to `samples`; prompts holds each prompt `samples` times. Empty if no prompt has all scores.
    The score is the expectation over all choices of n of the samples, so no sample is wasted; score_se: its standard
    error over the prompts, None for a single one.
    """
    rollouts = sampling.rollouts(reference.policy, prompts, "best_of_n")
    scores = torch.cat([score_or_nan(rewards(rollout)) for rollout in rollouts]).view(-1, samples)
    scores = scores[~scores.isnan().any(dim=1)].sort(dim=1).values
    sizes = [2**i for i in range(samples.bit_length())] if len(scores) else []
    points = list[dict[str, float | None]]()
    for n in sizes:
        best = scores @ chances_of_best(samples, n)  # expected best of each prompt
        error = best.std().item() / len(best) ** 0.5 if len(best) > 1 else None
        points.append({"n": n, "kl": best_of_n_kl(n), "score": best.mean().item(), "score_se": error})
    return points


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: upper bound of KL(best-of-n, reference), nats per sequence."""
    return math.log(n) - (n - 1) / n


def chances_of_best(samples: int, n: int) -> Tensor:
    """P(the i-th smallest of `samples` is the largest of n drawn without replacement) = C(i-1, n-1) / C(samples, n)."""
    i = torch.arange(1, samples + 1, dtype=torch.float64)
    below = torch.lgamma(i) - torch.lgamma((i - n + 1).clamp(min=1))
    log = below - math.lgamma(n) - (math.lgamma(samples + 1) - math.lgamma(n + 1) - math.lgamma(samples - n + 1))
    return torch.where(i >= n, log.exp(), 0.0)


def score_or_nan(scored: Scores) -> Tensor:
    """Scores (B,), NaN where no reward model applied."""
    return torch.where(scored.valid, scored.total, float("nan")).double().cpu()


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
    """95 % percentile interval of the mean of gains (n,), prompts resampled with replacement: [low, high].

    None for fewer than two gains: resampling one number always gives that number, which says nothing of its error.
    """
    if len(gains) < 2:
        return None
    picks = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    means = gains[picks].mean(dim=1)
    return [means.quantile(0.025).item(), means.quantile(0.975).item()]


def bigrams_of(rows: Sequence[list[int]], eos: int) -> list[tuple[int, int]]:
    """Bigrams of token ids inside each response, without EOS, in the order of the responses."""
    texts = [[i for i in row if i != eos] for row in rows]
    return [pair for ids in texts for pair in pairwise(ids)]


def distinct_share(items: Sequence[object]) -> float | None:
    """Share of distinct items, None without any; it falls with the number of items, so compare only equal numbers."""
    return len(set(items)) / len(items) if items else None
