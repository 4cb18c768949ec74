"""From scores to rewards: one number a response becomes a reward a token.

Order, always: the weighted sum over the reward models, normalisation, clipping, the truncation rule; then
    r_t = -beta kl_t + token rewards in place + [t = last token of the mask] the rest of the score.
The score lands on the last token of the mask (the EOS of a response that stopped). TRL and torchtune put it one slot
behind the EOS, where V must have learned it too (`one_slot_more`); at gamma = 1 that only matters for lambda < 1.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minirlhf.config.schema import PPOConfig, TruncationConfig
from minirlhf.models.rollout import Rollout
from minirlhf.tensors import Moments, last_index, moments


@dataclass(frozen=True)
class Scored:
    """What the reward models gave a rollout.

    scores (B,): the weighted sum, 0 where nobody scored; valid (B,): somebody scored; token_rewards (B,R): the part
    of the score that has a place; metrics: a mean for each label, and what the rewards logged themselves.
    """

    scores: Tensor
    valid: Tensor
    token_rewards: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShapedScores:
    """scores (B,) and rollout (its mask without the rows that take no part) after all rules; bootstrap (B,) = V
    that stands for what a truncated response would still have earned; running = the moments for the next call."""

    scores: Tensor
    rollout: Rollout
    bootstrap: Tensor
    running: Moments


def shape_scores(
    scored: Scored,
    rollout: Rollout,
    next_value: Tensor,
    running: Moments,
    ppo: PPOConfig,
    truncation: TruncationConfig,
    *,
    learn: bool = True,
) -> ShapedScores:
    """Normalise, clip, apply the truncation rule; rows without a score, or ruled out, leave the mask.

    learn: these scores count in the moments that they are normalised by (a baseline's do not).
    """
    scores, valid = scored.scores, scored.valid
    if ppo.score_normalize:
        if learn:
            now = moments(scores, valid)
            running = Moments(running.total + now.total, running.squares + now.squares, running.count + now.count)
        scores = (scores - running.mean) / (running.std() or 1.0)
    if ppo.score_clip is not None:
        scores = scores.clamp(-ppo.score_clip, ppo.score_clip)
    cut = ~rollout.terminated
    bootstrap = torch.zeros_like(scores)
    if truncation.rule == "penalty":
        scores = scores - cut * float(truncation.value or 0.0)
    elif truncation.rule == "replace":
        scores = torch.where(cut, float(truncation.value or 0.0), scores)
    elif truncation.rule == "mask":
        valid = valid & ~cut
    elif truncation.rule == "bootstrap":
        bootstrap = torch.where(cut, next_value, bootstrap)
    scores = torch.where(valid, scores, torch.zeros_like(scores))
    return ShapedScores(scores, rollout.keeping(valid), bootstrap, running)


def place_rewards(scores: Tensor, token_rewards: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """scores (B,), token_rewards (B,R), penalty = beta kl (B,R) -> rewards (B,R), 0 where masked.

    Whatever the rules did to a score, the token rewards keep their places and the rest of it, score - sum of token
    rewards, goes to the last token: a row's rewards sum to its score minus its penalty.
    """
    zero = torch.zeros_like(penalty)
    placed = torch.where(mask, token_rewards, zero)
    rewards = torch.where(mask, placed - penalty, zero)
    last = last_index(mask)
    rest = torch.where(last >= 0, scores - placed.sum(dim=1), torch.zeros_like(scores))
    return rewards.scatter_add(1, last.clamp(min=0).unsqueeze(1), rest.unsqueeze(1))


def one_slot_more(
    known: dict[str, Tensor], scored: Scored, penalty: Tensor, ended: Tensor, next_value: Tensor
) -> dict[str, Tensor]:
    """The inputs of an advantage function on rows of R + 1: behind the EOS of each row that `ended` (B,) is a state of
    its own, with V = next_value (B,), and the score lands there (TRL's convention)."""

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), 1)], dim=1)

    per_token = {name for name, x in known.items() if x.ndim == 2}
    out = {name: wide(x) if name in per_token else x for name, x in known.items()}
    slot = last_index(known["mask"]).unsqueeze(1) + 1
    has_slot = (ended & (slot.squeeze(1) > 0)).unsqueeze(1)
    out["mask"] = out["mask"].scatter(1, slot, has_slot | out["mask"].gather(1, slot))
    out["values"] = torch.where(out["mask"] & ~wide(known["mask"]), next_value.unsqueeze(1), wide(known["values"]))
    out["rewards"] = place_rewards(known["scores"], wide(scored.token_rewards), wide(penalty), out["mask"])
    return out
