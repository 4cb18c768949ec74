"""From scores to rewards: one number a response becomes a reward a token.

The order is always the same: weighted sum over the reward functions, normalisation, clipping, truncation rule; then
    r_t = -beta kl_t + token rewards in place + [t = last token of the mask] the rest of the score.
The score lands on the last token of the mask (the EOS of a response that stopped). TRL and torchtune put it one slot
behind the EOS, where V must have learned it, too (`rl.terms.one_slot_more`); at gamma = 1 that matters for lambda < 1
only. Not here: calling reward functions and summing what they give (call.py).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minirlhf.config.schema import PPOConfig, TruncationConfig
from minirlhf.models.rollout import Rollout
from minirlhf.tensors import Moments, last_index, moments, widened


@dataclass(frozen=True)
class Scores:
    """Scores of the B responses of a rollout, as tensors.

    total (B,): the weighted sum, 0 where no reward applied; valid (B,): some reward applied; token_rewards (B,R): the
    part of the total that belongs to single tokens; metrics: mean of each label, and what the functions logged.
    """

    total: Tensor
    valid: Tensor
    token_rewards: Tensor
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShapedScores:
    """Scores of a rollout after all rules, ready to be placed.

    scores (B,); rollout: its mask is without the rows that take no part; token_rewards (B,R): the part of the scores
    that belongs to single tokens; bootstrap (B,): V that stands for what a truncated response would still have earned;
    running: moments of the run's scores, for the next iteration; slot_returns (B,): target of V behind the EOS where
    the score lands there (NaN for rows without such a slot), None where it lands on the last token; greedy_scores (B,):
    shaped return of the most likely response, None where no advantage function asks for it.
    """

    scores: Tensor
    rollout: Rollout
    token_rewards: Tensor
    bootstrap: Tensor
    running: Moments
    slot_returns: Tensor | None = None
    greedy_scores: Tensor | None = None

    def keeping(self, valid: Tensor) -> "ShapedScores":
        """The same scores; rows outside `valid` (B,) leave the mask as well."""
        rollout, slot = self.rollout.keeping(valid), self.slot_returns
        if slot is not None:
            slot = target_behind_eos(self.scores, self.token_rewards, rollout)
        return replace(self, rollout=rollout, slot_returns=slot)


def shape_scores(
    given: Scores,
    rollout: Rollout,
    next_value: Tensor,
    running: Moments,
    ppo: PPOConfig,
    truncation: TruncationConfig,
    *,
    learn: bool = True,
) -> ShapedScores:
    """Normalise, clip and apply the truncation rule. Rows without a score, or ruled out, leave the mask.

    Normalising and clipping multiply the token rewards of a response by the same factor as its score. With the rule
    `bootstrap` a cut response keeps its token rewards and V stands for all that would have followed, the score
    included: paying both would pay it twice.
    next_value (B,): V of the state after the last token, for the rule `bootstrap`. running: moments of the scores of
    the run so far. learn: add these scores to the moments (a baseline's are not added).
    """
    scores, tokens, valid = given.total, given.token_rewards, given.valid
    if ppo.score_normalize:
        running = running + moments(scores, valid) if learn else running
        std = running.std() if running.varies else 1.0
        scores, tokens = (scores - running.mean) / std, tokens / std
    if ppo.score_clip is not None:
        clipped = scores.clamp(-ppo.score_clip, ppo.score_clip)
        tokens = tokens * torch.where(clipped == scores, 1.0, clipped / scores).unsqueeze(1)
        scores = clipped
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
        scores = torch.where(cut, torch.where(rollout.mask, tokens, 0.0).sum(dim=1), scores)
    scores = torch.where(valid, scores, torch.zeros_like(scores))
    kept = rollout.keeping(valid)
    slot = target_behind_eos(scores, tokens, kept) if ppo.score_slot == "after" else None
    return ShapedScores(scores, kept, tokens, bootstrap, running, slot)


def target_behind_eos(scores: Tensor, token_rewards: Tensor, rollout: Rollout) -> Tensor:
    """Target of V behind the EOS, where the score lands with ppo.score_slot = "after": (B,); NaN without an EOS."""
    rest = (scores - widened(torch.where(rollout.mask, token_rewards, 0.0)).sum(dim=1)).to(scores.dtype)
    return torch.where(rollout.terminated & rollout.mask.any(dim=1), rest, float("nan"))


def place_rewards(scores: Tensor, token_rewards: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """Rewards (B,R), 0 where masked, from scores (B,), token_rewards (B,R) and penalty = beta kl (B,R).

    Token rewards keep their places; the rest of a score, score - sum of token rewards, goes to the last token of the
    mask. So the rewards of a row sum to its score minus its penalty.
    """
    zero = torch.zeros_like(penalty)
    placed = torch.where(mask, token_rewards, zero)
    rewards = torch.where(mask, placed - penalty, zero)
    last = last_index(mask)
    # In float64, because the token rewards of a long response may be large beside their sum.
    rest = torch.where(last >= 0, scores - widened(placed).sum(dim=1), 0.0).to(rewards.dtype)
    return rewards.scatter_add(1, last.clamp(min=0).unsqueeze(1), rest.unsqueeze(1))
