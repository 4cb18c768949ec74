"""The objective J = score - beta KL of reference, policy and best-of-n, measured on the same prompts.

Each prompt gets several responses of the reference and several of the policy. One set of reference responses serves
for J of the reference, for best-of-n and for the residual (`residual_std`). A policy that has learned something is not
yet better than sampling: best-of-n of the reference trains nothing, so the two are compared, prompt by prompt.

Not here: one response a side on many prompts (evaluate.py), the sentences about the result (report/of_objective.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.rl.metrics import residual_std
from minirlhf.stages.divergence import passes, summed_kl
from minirlhf.stages.evaluate import Sampling
from minirlhf.stages.intervals import t_interval
from minirlhf.tensors import ROUNDING

MOST_LOST = 0.1  # share of the prompts that J may lose; more are selected by their responses, and stand for no others
# Scores as the rewards give them, and after the run's rules (None where these are not known): (B,), NaN without one.
Judge = Callable[[Rollout], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Measured:
    """S responses of one model to each of P prompts, measured: tensors (P,S) on the CPU, float64.

    scores: as the rewards give them; shaped: after the run's rules for the sum, None where these are not known; both
    NaN for a response without a score. log_ratio: log(policy/reference) of the whole response. kl: sum over its tokens
    of KL(policy, reference), nats; its mean over the policy's own responses estimates the KL of whole responses.
    """

    scores: Tensor
    shaped: Tensor | None
    log_ratio: Tensor
    kl: Tensor

    def residual_std(self, beta: float) -> float | None:
        """Standard deviation within a prompt of score - beta log(policy/reference), pooled; None if unknown."""
        if self.shaped is None:
            return None
        group = torch.arange(len(self.shaped)).repeat_interleave(self.shaped.shape[1])
        residuals = (self.shaped - beta * self.log_ratio).flatten()
        return residual_std(residuals, group, ~residuals.isnan())


@torch.no_grad()
def measure(
    sampler: Policy, policy: Policy, reference: Reference, prompts: PromptBatch, judge: Judge, sampling: Sampling
) -> Measured:
    """Sample responses of `sampler` (the policy, or the reference's model), and measure them.

    prompts: each prompt as often as it is to be answered, one row after another.
    """
    judged, passed = [], []
    for rollout in sampling.rollouts(sampler, prompts, "objective"):
        scores, shaped = judge(rollout)
        judged.append((scores, scores if shaped is None else shaped))
        for part in passes(rollout):
            active, frozen = policy.forward_pass(part, with_entropy=False), reference.forward_pass(part)
            log_ratio = torch.where(part.mask, active.logprobs - frozen.logprobs, 0.0).cpu().double().sum(dim=1)
            # Along the reference's responses the sum would say nothing about the policy, and takes as long as sampling.
            kl = summed_kl(active, frozen, part.mask) if sampler is policy else torch.zeros_like(log_ratio)
            passed.append((log_ratio, kl))
    shape, columns = (int(prompts.group.max()) + 1, -1), [*zip(*judged, strict=True), *zip(*passed, strict=True)]
    scores, after, log_ratio, kl = (torch.cat(column).cpu().double().view(shape) for column in columns)
    return Measured(scores, None if shaped is None else after, log_ratio, kl)


def compare_objectives(reference: Measured, policy: Measured, beta: float, most: int) -> dict[str, Any] | None:
    """Content of `objective` in evaluation.json: J of reference, policy and best-of-n; None if it cannot be known.

    A prompt with a response that has no score is left out on all sides: above MOST_LOST of them J is unknown.
    n = 4, 16, 64, ... up to `most`, the number of the reference's responses at most. Intervals are Student's t of the
    differences over the prompts.
    """
    if reference.shaped is None or policy.shaped is None:
        return None
    kept, lost = kept_and_lost(reference, policy)
    if not kept.any() or lost > MOST_LOST * (int(kept.sum()) + lost):
        return None
    scores, kl = reference.shaped[kept], policy.kl[kept].mean(dim=1)
    own = policy.shaped[kept].mean(dim=1) - beta * kl  # (P,): J of the policy on each prompt
    rivals, points = {"reference": scores.mean(dim=1)}, list[dict[str, Any]]()
    for n in [4**i for i in range(1, most.bit_length()) if 4**i <= most]:
        best, spent = best_scores(scores, n), torch.stack([best_of_n_kl_of(row, n) for row in scores])
        rivals[f"best of {n}"] = best - beta * spent
        points.append({"n": n, "kl": spent.mean().item(), "score": best.mean().item()})
    for point in points:
        value = rivals[f"best of {point['n']}"]
        point |= {"objective": value.mean().item(), **lead("policy_lead", own - value)}
    strongest = max(rivals, key=lambda name: rivals[name].mean().item())
    j, before, against = (x.mean().item() for x in (own, rivals["reference"], rivals[strongest]))
    what, best_known = ("policy", j) if j > against else (strongest, against)
    return {
        **{
            "beta": beta,
            "prompts": len(own),
            "prompts_left_out": lost,
            "reference": before,
            "policy": j,
            "policy_kl": kl.mean().item(),
        },
        **lead("policy_gain", own - rivals["reference"]),
        "best_of_n": points,
        "best_known": {"what": what, "objective": best_known},
        "share_at_most": (j - before) / (best_known - before) if best_known > before else None,
        "not_beaten": [point["n"] for point in points if point["objective"] >= j],
        "verdict": {"against": strongest, "outcome": outcome(own, rivals[strongest], beta)},
    }


def kept_and_lost(reference: Measured, policy: Measured) -> tuple[Tensor, int]:
    """Prompts (P,) whose responses all have a score after the run's rules, and the number of the others.

    A prompt that no reward applies to is not counted: it was not lost by what was written.
    """
    if reference.shaped is None or policy.shaped is None:
        return torch.zeros(len(reference.scores), dtype=torch.bool), 0
    kept = ~torch.cat((reference.shaped, policy.shaped), dim=1).isnan().any(dim=1)
    applies = ~torch.cat((reference.scores, policy.scores), dim=1).isnan().all(dim=1)
    return kept, int((applies & ~kept).sum())


def why_unknown(reference: Measured, policy: Measured, rule: str) -> str:
    """Reason why J cannot be known from these responses. rule: for truncated responses."""
    kept, lost = kept_and_lost(reference, policy)
    cut = f" (truncation.rule = {rule} gives none to one that was cut)" if rule in ("mask", "bootstrap") else ""
    if not kept.any():
        return f"no prompt has a score for every response{cut}"
    return f"{lost} of {int(kept.sum()) + lost} prompts have a response without a score{cut}; the rest is a selection"


def objective_of_problem(exact: dict[str, float | None], reference: float, beta: float, prompts: int) -> dict[str, Any]:
    """`objective` of a problem whose optimum is known, from its exact numbers; nothing is sampled.

    exact: what `optimality` returns. reference: J of the reference. prompts: of the problem.
    """
    return {
        **{"beta": beta, "prompts": prompts, "reference": reference, "policy": exact["objective"]},
        "policy_kl": exact["kl"],
        "best_of_n": [],
        "best_known": {"what": "optimum", "objective": exact["best"]},
        "share_at_most": exact["optimality"],
        "not_beaten": [],
    }


def lead(name: str, differences: Tensor) -> dict[str, Any]:
    """Mean of differences over the prompts (P,) and its 95 % interval (None for one prompt), under this name."""
    return {name: differences.mean().item(), f"{name}_ci95": t_interval(differences)}


def outcome(own: Tensor, other: Tensor, beta: float) -> str:
    """beats, beaten, or not told apart: where the 95 % interval of the mean of own - other lies, (P,) each.

    A difference of rounding is none: that of the scores, and that of a KL, which is a sum of differences of logs.
    """
    interval = t_interval(own - other)
    margin = ROUNDING * (own.abs().max() + other.abs().max() + beta).item()
    if interval is None or (interval[0] <= margin and interval[1] >= -margin):
        return "not told apart"
    return "beats" if interval[0] > margin else "beaten"


# ---- best of n ---------------------------------------------------------------------------------------------


def best_of_n(scores: Tensor, most: int) -> list[dict[str, float | None]]:
    """Points n, kl (upper bound, nats per sequence) and score for n = 1, 2, 4, ... up to `most` of the reference.

    score_se: standard error of the score over the prompts, None for a single one.

    scores (P,S), S >= most. A prompt with a response that has no score (NaN) is left out; empty if none remains.
    """
    kept = scores[~scores.isnan().any(dim=1)]
    numbers = [2**i for i in range(most.bit_length())] if len(kept) else []
    points = list[dict[str, float | None]]()
    for n in numbers:
        best = best_scores(kept, n)
        error = best.std().item() / len(best) ** 0.5 if len(best) > 1 else None
        points.append({"n": n, "kl": best_of_n_kl(n), "score": best.mean().item(), "score_se": error})
    return points


def best_scores(scores: Tensor, n: int) -> Tensor:
    """Expected score of the best of n on each prompt, over all choices of n of its samples: (P,S) -> (P,)."""
    return scores.sort(dim=1).values @ chances_of_best(scores.shape[1], n)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: upper bound of KL(best-of-n, reference), nats per sequence; reached without ties."""
    return math.log(n) - (n - 1) / n


def best_of_n_kl_of(scores: Tensor, n: int) -> Tensor:
    """Estimate of KL(best-of-n, reference) on a prompt, nats per sequence: scores (S,) of the reference -> 0-d.

    Ties are broken at random, so best-of-n draws a response by w / (b - a) times the reference's probability, with
    a, b = chance of a score below it, and of one not above it; w = b^n - a^n. So KL = sum over the scores of
    w log(w / (b - a)). A reward of few values has a KL far below the bound: log 2 at most if half of the responses are
    right. The chances are those of the sample; the jackknife takes out the bias of first order that they bring.
    """
    samples, counts = len(scores), torch.unique(scores, return_counts=True)[1].double()
    one_less = counts.expand(len(counts), -1) - torch.eye(len(counts), dtype=counts.dtype)  # (L,L): a sample left out
    left_out = counts @ kl_of_counts(one_less, n) / samples
    estimate: Tensor = samples * kl_of_counts(counts, n) - (samples - 1) * left_out
    return estimate  # on one prompt it may pass the bound; cut there, the mean over prompts would be too low


def kl_of_counts(counts: Tensor, n: int) -> Tensor:
    """Sum of w log(w / (b - a)) over scores in ascending order that occurred so often: (...,L) -> (...).

    A score that occurred once is not taken for a tie with itself: there the integral of n u^(n-1) log(n u^(n-1)) du
    from a to b stands, whose sum without any tie is `best_of_n_kl`.
    """
    total = counts.sum(dim=-1, keepdim=True)
    above, below = counts.cumsum(dim=-1) / total, (counts.cumsum(dim=-1) - counts) / total
    chance = above**n - below**n
    tied = torch.xlogy(chance, chance / (above - below))
    alone, under = (u**n * best_of_n_kl(n) + (n - 1) * torch.xlogy(u**n, u) for u in (above, below))
    return torch.where(counts > 1, tied, torch.where(counts > 0, alone - under, 0.0)).sum(dim=-1)


def chances_of_best(samples: int, n: int) -> Tensor:
    """P(the i-th smallest of `samples` is the largest of n drawn without replacement) = C(i-1, n-1) / C(samples, n)."""
    i = torch.arange(1, samples + 1, dtype=torch.float64)
    below = torch.lgamma(i) - torch.lgamma((i - n + 1).clamp(min=1))
    log = below - math.lgamma(n) - (math.lgamma(samples + 1) - math.lgamma(n + 1) - math.lgamma(samples - n + 1))
    return torch.where(i >= n, log.exp(), 0.0)
