"""Metrics of an iteration, one formula a line. Names are TRL's where TRL's PPO has the metric.

Every mean is over the mask (tokens), or over the rows that have one (responses). docs/metrics.md lists each metric with
formula and unit, and a test compares the two. Not here: metrics that policy losses and rewards log themselves.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minirlhf.builtin.advantages import reward_to_go
from minirlhf.components.component import Built
from minirlhf.models.rollout import PolicyOutput
from minirlhf.rewards.shape import ShapedScores
from minirlhf.rl.experience import Experience
from minirlhf.tensors import (
    LOG_CLAMP,
    ROUNDING,
    importance_ratio,
    last_index,
    masked_mean,
    masked_sum,
    moments,
    widened,
)

Metrics = dict[str, float]


def rollout_metrics(
    experience: Experience,
    shaped: ShapedScores,
    entropy: Tensor,
    penalty: Tensor,
    beta: float,
    advantage: Built,
    eos: int,
) -> Metrics:
    """Metrics of the responses of an iteration; NaN for means over responses that take part if none does.

    entropy (B,R); penalty (B,R): beta kl in the reward; beta: KL coefficient of this iteration;
    advantage: its function, with the discount that V learns; eos: id of EOS, beside which other ids may end a response.
    """
    e, mask = experience, experience.mask
    rows, reached = mask.any(dim=1), e.rollout.response_mask
    count = rows.sum().clamp(min=1)
    values = {
        "objective/kl": masked_sum(e.kl, mask) / count,
        "objective/entropy": -masked_sum(e.old_logprobs, mask) / count,
        "objective/non_score_reward": -masked_sum(penalty, mask) / count,
        "objective/rlhf_reward": masked_sum(e.rewards, mask) / count,
        "objective/scores": masked_mean(e.scores, rows),
        "policy/entropy_avg": masked_mean(entropy, mask),
        "val/num_eos_tokens": (e.rollout.terminated | (reached & (e.rollout.response_ids == eos)).any(dim=1)).sum(),
        "response/length": e.rollout.response_mask.sum() / len(e),
        "response/eos_rate": e.rollout.terminated.float().mean(),
        "count/masked_rows": (~rows).sum(),
        "count/flat_batches": ~((e.advantages != 0) & mask).any(),
    }
    read = torch.stack([widened(value) for value in values.values()]).tolist()
    metrics = dict(zip(values, read, strict=True))
    scores = moments(e.scores, rows)
    metrics["objective/scores_std"] = scores.std() if scores.count > 1 else math.nan
    came = rewards_that_came(e, shaped, discount(advantage))
    metrics["value/explained_variance"] = explained_variance(came, e.old_values, mask)
    log_ratio = torch.where(mask, e.old_logprobs - e.ref_logprobs, 0.0).sum(dim=1)
    metrics["objective/score_length_correlation"] = correlation(
        e.scores[rows], e.rollout.response_mask.sum(dim=1)[rows]
    )
    metrics["response/repetition"] = repeated_triples(e.rollout.completion_id_lists)
    if not scores.count:
        metrics |= {name: math.nan for name in metrics if name.startswith(("objective/", "policy/", "value/"))}
    residual = residual_std(e.scores - beta * log_ratio, e.rollout.group, rows)
    if residual is not None:
        metrics |= {
            "objective/residual_std": residual,
            "count/flat_groups": flat_groups(e.scores, e.rollout.group, rows),
        }
    return metrics


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of x and y (n,); 0 if one of them does not vary, but for rounding."""
    everything = torch.ones_like(x, dtype=torch.bool)
    if not (moments(x, everything).varies and moments(y, everything).varies):
        return 0.0
    x, y = (widened(z) - widened(z).mean() for z in (x, y))
    return float((x * y).sum() / (x.norm() * y.norm()))


def repeated_triples(rows: Sequence[Sequence[int]]) -> float:
    """Share of token triples that occurred earlier in their response, over all responses; 0: nothing repeated."""
    total, distinct = 0, 0
    for ids in rows:
        triples = list(zip(ids, ids[1:], ids[2:], strict=False))
        total, distinct = total + len(triples), distinct + len(set(triples))
    return 1 - distinct / total if total else 0.0


def flat_groups(scores: Tensor, group: Tensor, rows: Tensor) -> float:
    """Share of the prompts with two responses or more whose scores are all equal, but for rounding."""
    _, index, sizes = torch.unique(group[rows], return_inverse=True, return_counts=True)
    kept, empty = scores[rows], scores.new_zeros(len(sizes))
    highest = empty.scatter_reduce(0, index, kept, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, index, kept, "amin", include_self=False)
    several = sizes > 1
    flat = highest - lowest <= ROUNDING * torch.maximum(highest.abs(), lowest.abs())
    return float((flat & several).sum() / several.sum().clamp(min=1))


def residual_std(residuals: Tensor, group: Tensor, rows: Tensor) -> float | None:
    """Standard deviation within a prompt, pooled over prompts with two responses or more; None without any.

    Score units. residuals (B,) = r - beta log(pi/ref) of whole responses; group (B,): their prompts; rows (B,): True if
    a row counts. Only at the optimum is r - beta log(pi/ref) the same for all responses to a prompt, so 0 says that
    nothing is left to gain at this beta. Across prompts it differs by their difficulty, hence within a prompt.
    """
    _, index, sizes = torch.unique(group[rows], return_inverse=True, return_counts=True)
    x = widened(residuals[rows].detach())
    freedom = int((sizes - 1).sum())
    if freedom == 0:
        return None
    # Pooled: squares are summed over all prompts and divided by sum (n_g - 1), one degree of freedom for each prompt's
    # mean. The mean of the prompts' own deviations would be biased downwards for the two to four responses usual here.
    means = x.new_zeros(len(sizes)).scatter_add(0, index, x) / sizes
    return float(((x - means[index]).square().sum() / freedom).sqrt())


class Averages:
    """Sums over the micro-batches of a minibatch, kept on the device until they are read all at once."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens  # of the whole minibatch, 0-d
        self.sums: dict[str, Tensor] = {}

    def add(self, shares: dict[str, Tensor]) -> None:
        """Add 0-d tensors that are shares of the minibatch's value already."""
        for name, value in shares.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()

    def add_means(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Add (b,R) values a token, or 0-d values of a micro-batch, averaged over the tokens of the minibatch."""
        for name, value in values.items():
            spread = widened(value.detach()).expand(mask.shape)
            self.add({name: masked_sum(spread, mask) / self.tokens})

    def add_largest(self, name: str, value: Tensor, mask: Tensor) -> None:
        """Keep the largest of value (b,R) over the mask and over all micro-batches."""
        largest = torch.where(mask, value.detach(), torch.zeros_like(value)).max()
        self.sums[name] = torch.maximum(self.sums.get(name, largest), largest)

    def read(self) -> Metrics:
        """Read everything as floats: one wait for the device."""
        return dict(zip(self.sums, torch.stack([widened(x) for x in self.sums.values()]).tolist(), strict=True))


@torch.no_grad()
def drift(new: PolicyOutput, micro: Experience, clip: Tensor) -> dict[str, Tensor]:
    """Distance of the policy from the one that sampled, (b,R) each; clip (0-d): range of the value clip, 0: none."""
    log_ratio = new.logprobs - micro.old_logprobs
    return {
        "policy/approxkl_avg": 0.5 * log_ratio.square(),
        "policy/clamped_avg": log_ratio.abs() > LOG_CLAMP,
        "val/ratio": importance_ratio(new.logprobs, micro.old_logprobs),
        "val/clipfrac_avg": ((new.values - micro.old_values).abs() > clip) & (clip > 0),
    }


def discount(advantage: Built) -> float:
    """Discount of an advantage function: its option `gamma`, 1 without one (or if that is no number)."""
    gamma = advantage.option("gamma", None)
    return float(gamma) if isinstance(gamma, int | float) else 1.0


def rewards_that_came(e: Experience, shaped: ShapedScores, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on: (B,R), 0 where masked.

    Behind a response that was cut stands V of the next state if the truncation rule says so (`shaped.bootstrap`); a
    score that lands behind the EOS is one step later than the last token.
    """
    rewards, behind = e.rewards, shaped.bootstrap
    if e.slot_returns is not None:
        there = e.slot_returns.isfinite()
        late = torch.where(there, e.slot_returns, 0.0)
        last = last_index(e.mask).clamp(min=0).unsqueeze(1)
        rewards, behind = rewards.scatter_add(1, last, -late.unsqueeze(1)), torch.where(there, late, behind)
    return reward_to_go(rewards, e.mask, behind, gamma=gamma)


def explained_variance(came: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - Var(came - values) / Var(came) over the mask: 1 = perfect, 0 = no better than a constant.

    came, values (B,R): the rewards that came from a token on, and V, which predicts them. The returns that V is trained
    on would not do: where lambda < 1 they contain V itself, so that even a random V seems to predict them. NaN for
    rewards that do not vary, but for rounding: there is nothing to explain.
    """
    total = moments(came, mask)
    return 1.0 - moments(came - values, mask).variance() / total.variance() if total.varies else math.nan


def update_metrics(updates: list[Metrics], beta: float, lr: float) -> Metrics:
    """Means over the optimiser steps of an iteration; none if no row could be learned from."""
    names = updates[0].keys() if updates else ()
    means = {name: sum(u[name] for u in updates) / len(updates) for name in names if name != "log_ratio"}
    ratios = torch.tensor([u["val/ratio"] for u in updates], dtype=torch.float64)
    return {
        **means,
        "val/ratio_var": float(ratios.var()) if len(updates) > 1 else 0.0 if updates else math.nan,
        "policy/first_log_ratio": updates[0]["log_ratio"] if updates else math.nan,
        "count/updates": float(len(updates)),
        "kl/coef": beta,
        "lr": lr,
    }
