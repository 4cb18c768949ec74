"""Terms of the objective: what KL estimators, advantage functions and policy losses see, and the calls of them.

This is the one place that defines their inputs: the loop, the audit, the token log and the checks of plugins all use
the three dataclasses below, so that a component sees the same everywhere. Field names are the names that a component
may ask for (`components.component.INPUTS`); a field that no component asks for may be None. Results come back checked.
Not here: the formulas, which are components (builtin/), and how losses are averaged (ppo.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minirlhf.components.checks import DeferredChecks
from minirlhf.components.component import Built
from minirlhf.models.rollout import LogDist, PolicyOutput, Rollout
from minirlhf.rewards.shape import ShapedScores, place_rewards
from minirlhf.rl.experience import Experience
from minirlhf.rl.guards import check_own_names
from minirlhf.tensors import last_index


@dataclass(frozen=True)
class KLInputs:
    """Inputs of a KL estimator: log-probs (B,R) of the tokens taken, distributions (B,R,V) as log-probs; nats."""

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    mask: Tensor
    log_dist: Tensor | None = None
    ref_log_dist: Tensor | None = None


@dataclass(frozen=True)
class AdvantageInputs:
    """Inputs of an advantage function: (B,R) a token, (B,) a response.

    rewards (B,R) with the KL penalty in them where it goes there; values (B,R); scores (B,) after the rules;
    greedy_scores (B,) shaped return of the most likely response; group (B,) index of the prompt; bootstrap_values (B,)
    stand for what a truncated response would still have earned.
    """

    rewards: Tensor
    values: Tensor
    mask: Tensor
    scores: Tensor
    greedy_scores: Tensor | None
    group: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    kl: Tensor
    terminated: Tensor
    bootstrap_values: Tensor


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a policy loss: (B,R) each; beta is the coefficient of N10's penalty on KL(policy, old policy)."""

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    beta: float


def estimate_kl(estimator: Built, inputs: KLInputs, later: DeferredChecks | None = None) -> Tensor:
    """(B,R) nats a token, 0 where masked. `later` as in `Built.__call__`."""
    found: Tensor = estimator(vars(inputs), later)
    return found


def estimate_advantages(function: Built, inputs: AdvantageInputs) -> Tensor:
    """(B,R) advantages before whitening, 0 where masked, detached."""
    found: Tensor = function(vars(inputs))
    return found


def compute_loss(
    loss: Built, inputs: LossInputs, later: DeferredChecks | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,R) loss a token, 0 where masked, and the metrics that it logs: (B,R) or 0-d tensors by name."""
    values, logged = loss(vars(inputs), later)
    check_own_names(loss, logged)
    return values, logged


def kl(estimator: Built, active: PolicyOutput, reference: PolicyOutput, rollout: Rollout, size: int) -> Tensor:
    """KL of the active policy against the reference on its own rollout: (B,R) nats a token.

    size: responses at a time. No more distributions than those of `size` responses ever exist.
    """
    parts = []
    for start in range(0, len(rollout), size):
        rows = slice(start, start + size)
        taken, ref = active.logprobs[rows], reference.logprobs[rows]
        dists = _distributions(estimator, active.log_dist, reference.log_dist, rows)
        parts.append(estimate_kl(estimator, KLInputs(taken, taken, ref, rollout.mask[rows], *dists)))
    return torch.cat(parts)


def loss_kl(estimator: Built, new: PolicyOutput, micro: Experience, later: DeferredChecks) -> Tensor:
    """KL of the policy in training against the reference on a micro-batch, with its gradient: (b,R) nats a token."""
    dists = _distributions(estimator, new.log_dist, micro.ref_log_dist, slice(None))
    inputs = KLInputs(new.logprobs, micro.old_logprobs, micro.ref_logprobs, micro.mask, *dists)
    return estimate_kl(estimator, inputs, later)


def _distributions(
    estimator: Built, log_dist: LogDist, ref_log_dist: LogDist, rows: slice
) -> tuple[Tensor | None, Tensor | None]:
    """Distributions of these rows, computed only if the estimator asks for them; the reference's without a gradient."""
    dist = log_dist(rows) if estimator.names("log_dist") else None
    if not estimator.names("ref_log_dist"):
        return dist, None
    with torch.no_grad():
        return dist, ref_log_dist(rows)


def advantages(
    function: Built,
    rewards: Tensor,
    penalty: Tensor,
    kl: Tensor,
    active: PolicyOutput,
    reference: PolicyOutput,
    shaped: ShapedScores,
) -> Tensor:
    """Advantages of a rollout before whitening: (B,R), 0 where masked.

    rewards (B,R) and penalty = beta kl (B,R), which is in them. Where the score lands behind the EOS
    (`shaped.slot_returns`) the function works on rows that are one slot longer.
    """
    inputs = AdvantageInputs(
        rewards=rewards,
        values=active.values,
        mask=shaped.rollout.mask,
        scores=shaped.scores,
        greedy_scores=shaped.greedy_scores,
        group=shaped.rollout.group,
        logprobs=active.logprobs,
        ref_logprobs=reference.logprobs,
        kl=kl,
        terminated=shaped.rollout.terminated,
        bootstrap_values=shaped.bootstrap,
    )
    mask = inputs.mask
    if shaped.slot_returns is not None:
        inputs = one_slot_more(inputs, shaped.token_rewards, penalty, active.next_value)
    found = estimate_advantages(function, inputs)
    return torch.where(mask, found[:, : mask.shape[1]], 0.0)


def one_slot_more(
    inputs: AdvantageInputs, token_rewards: Tensor, penalty: Tensor, next_value: Tensor
) -> AdvantageInputs:
    """The same inputs on rows of R + 1: behind the EOS of each response that ended is one more state.

    Its V is next_value (B,), and the score lands there (TRL's convention). token_rewards, penalty (B,R) as in
    `place_rewards`.
    """

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), 1)], dim=1)

    per_token = {name: wide(x) for name, x in vars(inputs).items() if isinstance(x, Tensor) and x.ndim == 2}
    narrow, mask = per_token["mask"], per_token["mask"]
    slot = last_index(inputs.mask).unsqueeze(1) + 1
    has_slot = (inputs.terminated & (slot.squeeze(1) > 0)).unsqueeze(1)
    mask = mask.scatter(1, slot, has_slot | mask.gather(1, slot))
    per_token["mask"] = mask
    per_token["values"] = torch.where(mask & ~narrow, next_value.unsqueeze(1), per_token["values"])
    per_token["rewards"] = place_rewards(inputs.scores, wide(token_rewards), wide(penalty), mask)
    return replace(inputs, **per_token)


def policy_loss(
    loss: Built, new: PolicyOutput, micro: Experience, beta: float, later: DeferredChecks | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss of a micro-batch: (b,R) a token, and its metrics under the names that are logged.

    One metric is ours, logprob_grad (b,R): |d loss / d log pi| of each token, by which a loss that teaches nothing is
    recognised (alarms.py). The gradient of the parameters cannot tell, because the value loss is in it.
    """
    taken = new.logprobs.view_as(new.logprobs)  # so that the gradient below is of this loss alone, and stops here
    inputs = LossInputs(taken, micro.old_logprobs, micro.ref_logprobs, micro.advantages, micro.mask, beta)
    values, logged = compute_loss(loss, inputs, later)
    found = None
    if values.requires_grad and taken.requires_grad:
        (found,) = torch.autograd.grad(values.sum(), taken, retain_graph=True, allow_unused=True)
    pull = torch.zeros_like(values) if found is None else found.abs()
    return values, {f"policy/{name}_avg": value for name, value in (logged | {"logprob_grad": pull}).items()}
