"""The loop: PPO on a language model, in the order of the notes (N19). The right margin is their pseudocode.

`train` is a generator over a state that the caller made: it yields after every iteration, and between two yields the
state is complete, so saving is state to file and resuming is the same call. It receives the chosen components as
callables; it opens no file, prints nothing, and knows neither plugins nor their registry.

KL to the reference goes into the reward, into the loss, or both (`kl.place`). Whitening divides the reward's part of
the gradient by the scale of the advantages, so the coefficient of a KL loss is divided by that scale, too: beta then
means the same in every place.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.components.checks import DeferredChecks
from minirlhf.components.component import Built
from minirlhf.config.schema import Config, PPOConfig
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import PolicyOutput, Rollout
from minirlhf.rewards.shape import Scores, ShapedScores, place_rewards, shape_scores
from minirlhf.rl import terms
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.rl.experience import Experience
from minirlhf.rl.guards import check_experience, check_same_policy, diverged
from minirlhf.rl.laps import Laps
from minirlhf.rl.metrics import Averages, Metrics, drift, rollout_metrics, update_metrics
from minirlhf.streams import generator
from minirlhf.tensors import Moments, Whitening, masked_mean, masked_sum, moments, moved_kl, whiten
from minirlhf.text.tokenizer import Tokenizer

ENOUGH = 64  # scores: the standard deviation of so many is within a fifth of the true one (normal scores)
GROWN = 2.0  # units: where scores vary by more than so many of them, the unit of V grows
FAR = 3.0  # units: V begins at the mean score where that is further from 0


@dataclass
class PPOState:
    """State that one iteration hands to the next; complete between two yields of `train`."""

    policy: Policy
    reference: Reference
    optimizer: Optimizer
    schedule: LambdaLR
    controller: KLController
    penalty: Penalty
    score_moments: Moments  # of the scores so far, if ppo.score_normalize
    value_moments: Moments  # of the first scores: their standard deviation is the unit of V
    step: int = 0  # iterations done
    updates: int = 0  # optimiser steps done
    episodes: int = 0  # responses sampled
    tokens: int = 0  # response tokens sampled


@dataclass(frozen=True)
class Parts:
    """Callables of the loop: prompts(step), rewards(rollout, step), and the three chosen components."""

    prompts: Callable[[int], PromptBatch]
    rewards: Callable[[Rollout, int], Scores]
    kl: Built
    advantage: Built
    loss: Built
    whitening: Whitening
    tokenizer: Tokenizer

    @property
    def learns_values(self) -> bool:
        """True if V is trained: an advantage function that does not read V gives it no target."""
        return self.advantage.names("values")


def train(state: PPOState, parts: Parts, config: Config) -> Iterator[tuple[int, Experience, Metrics]]:
    """Iterate until `ppo.iterations`; yield (step, experience, metrics) after the epochs of each iteration.

    Raises DivergedError for numbers that are not finite and PluginError for a component that breaks its contract,
    both before the update that would use them.
    """
    while state.step < config.ppo.iterations:
        step, beta, laps = state.step, state.controller.beta, Laps()
        prompts = parts.prompts(step)
        rollout = sample(state, parts, config, prompts)  # response <- generate with the active policy
        laps.end("time/rollout")
        scores = parts.rewards(rollout, step)  # scores <- reward model on prompt + response
        with torch.no_grad():
            active = state.policy.forward_pass(rollout)  # active <- forward pass: all_probs, probs, all_values
            reference = state.reference.forward_pass(rollout)  # reference <- forward pass of the frozen model
            kl = terms.kl(parts.kl, active, reference, rollout, rows_at_a_time(config.ppo))  # kl <- KL, per token
            entropy = active.entropy()
        shaped, active = shape(state, parts, config, prompts, rollout, scores, active)
        penalty, mask = kl * (beta if config.kl.in_reward else 0.0), shaped.rollout.mask
        rewards = place_rewards(shaped.scores, shaped.token_rewards, penalty, mask)  # rewards <- scores, KL penalty
        advantages = terms.advantages(parts.advantage, rewards, penalty, kl, active, reference, shaped)  # <- f(V, r)
        returns = advantages + active.values  # returns <- advantages + values
        whitened = whiten(advantages, mask, parts.whitening)
        experience = Experience.build(shaped, active, reference, kl, rewards, whitened, returns)
        check_experience(experience, step)
        laps.end("time/score")
        epochs = list[list[Metrics]]()
        for epoch in range(config.ppo.epochs):  # for each epoch
            batches = minibatches(experience, config, step, epoch)
            epochs.append([update(state, batch, parts, config, beta / whitened.scale) for batch in batches])
            if moved_too_far(epochs[-1], config.ppo.target_kl):
                break
        metrics = rollout_metrics(experience, shaped, entropy, penalty, beta, parts.advantage, parts.tokenizer.eos_id)
        metrics |= scores.metrics | update_metrics(list(chain(*epochs)), beta, float(state.schedule.get_last_lr()[0]))
        check_same_policy(metrics["policy/first_log_ratio"], step, config.ppo.precision)
        finish_iteration(state, experience, shaped.running, config, metrics, laps)
        yield state.step, experience, metrics


def update(state: PPOState, batch: Experience, parts: Parts, config: Config, beta: float) -> Metrics:
    """Make one optimiser step on a minibatch; micro-batches of any size add up to the same gradient.

    beta: coefficient of a KL in the loss, already divided by the advantages' scale. Every per-token quantity is
    weighted by its share of the whole *minibatch*, so splitting it further changes nothing. Returns its metrics.
    """
    weights = token_weights(batch.mask, batch.mean_length, config.loss.aggregation, config.sampler.max_new_tokens)
    unit, clip = state.policy.value_scale, config.loss.value_clip * state.policy.value_scale
    log, later = Averages(tokens=batch.mask.sum()), DeferredChecks()
    for rows, micro in batch.micro_batches(rows_at_a_time(config.ppo)):
        weight, mask = weights[rows], micro.mask
        new = state.policy.forward_pass(micro.rollout)  # new <- forward pass of the active policy on the same data
        value_loss = weighted_value_loss(new, micro, weight, clip)  # value loss <- mean (returns - new values)^2
        surrogate, logged = terms.policy_loss(parts.loss, new, micro, state.penalty.beta, later)
        loss = masked_sum(weight * surrogate, mask)  # ratio, policy loss <- mean(-advantages * ratio), N10 or N11
        log.add({"loss/policy_avg": loss, "loss/value_avg": value_loss})
        if parts.learns_values:
            loss = loss + config.loss.value_coef * value_loss / unit.square()  # <- policy loss + rate * value loss
        if config.kl.in_loss:
            loss = loss + beta * masked_sum(weight * terms.loss_kl(parts.kl, new, micro, later), mask)
        if config.loss.entropy_coef:
            loss = loss - config.loss.entropy_coef * masked_sum(weight * new.entropy(), mask)
        loss.backward()  # type: ignore[no-untyped-call]  # backward
        log.add_means(drift(new, micro, clip) | logged, mask)
        log.add_largest("log_ratio", (new.logprobs - micro.old_logprobs).abs(), mask)
    return optimizer_step(state, config, log, later)  # optimizer step, zero grad


def sample(state: PPOState, parts: Parts, config: Config, prompts: PromptBatch) -> Rollout:
    """Sample the responses of this iteration from their own stream of randomness."""
    return generate(
        state.policy, prompts, parts.tokenizer, max_new_tokens=config.sampler.max_new_tokens,
        generator=generator(config.run.seed, "rollout", state.step),
    )  # fmt: skip


def shape(
    state: PPOState,
    parts: Parts,
    config: Config,
    prompts: PromptBatch,
    rollout: Rollout,
    scores: Scores,
    active: PolicyOutput,
) -> tuple[ShapedScores, PolicyOutput]:
    """Apply the rules to the scores; add the greedy scores where the advantage function compares with them.

    Returns `active`, too, in which V has its origin and unit.
    """
    rules = (state.score_moments, config.ppo, config.truncation)
    shaped = shape_scores(scores, rollout, active.next_value, *rules)
    if parts.learns_values:
        active = measure_values(state, shaped, active, config.truncation.rule)
        shaped = shape_scores(scores, rollout, active.next_value, *rules)
    if not parts.advantage.names("greedy_scores"):
        return shaped, active
    valid, greedy = greedy_scores(state, parts, config, prompts, shaped.running)
    return replace(shaped.keeping(valid), greedy_scores=greedy), active


def measure_values(state: PPOState, shaped: ShapedScores, active: PolicyOutput, rule: str) -> PolicyOutput:
    """Let the scores decide unit and origin of V; returns `active` with the values from there.

    The unit is the standard deviation of the scores of the first rollouts, until there are ENOUGH: the reference's, or
    nearly. It grows if all scores so far vary by more than GROWN units, as those of a reward that was 0 at first do. V
    begins at 0, or at the mean of the first scores where that is FAR from 0. With c times the rewards and c times beta,
    V is then learned from the same numbers. Scores that do not vary have a mean, but no unit: V keeps the one it has.
    A cut response has no score of its own under the rule `bootstrap`.
    """
    seen, policy = state.value_moments, state.policy
    first, settled = seen.count == 0, seen.count >= ENOUGH and seen.varies
    scored = shaped.rollout.mask.any(dim=1)
    scored = scored & shaped.rollout.terminated if rule == "bootstrap" else scored
    state.value_moments = seen = seen + moments(shaped.scores, scored)
    spread = seen.std() if seen.varies else 0.0
    if (spread and not settled) or spread > GROWN * float(policy.value_scale):
        policy.rescale_values(spread)
    if not first or abs(seen.mean) <= FAR * spread:
        return active
    policy.shift_values(seen.mean)
    there = shaped.rollout.response_mask
    values = torch.where(there, active.values + seen.mean, active.values)
    return replace(active, values=values, next_value=active.next_value + seen.mean)


def greedy_scores(
    state: PPOState, parts: Parts, config: Config, prompts: PromptBatch, running: Moments
) -> tuple[Tensor, Tensor]:
    """(valid (B,), shaped return (B,)) of the most likely response to each prompt (ReMax, 2310.10505).

    The return is its score after the same rules, minus beta KL where the KL is in the reward. A row whose most likely
    response has no score, or is ruled out, is not valid: there is nothing to compare it with. running: moments of the
    run's scores.
    """
    greedy = generate(
        state.policy, prompts, parts.tokenizer, max_new_tokens=config.sampler.max_new_tokens,
        generator=generator(config.run.seed, "greedy", state.step),
        sampler=replace(state.policy.sampler, temperature=0.0),
    )  # fmt: skip
    with torch.no_grad():
        active, reference = state.policy.forward_pass(greedy), state.reference.forward_pass(greedy)
        kl = terms.kl(parts.kl, active, reference, greedy, rows_at_a_time(config.ppo))
    given = parts.rewards(greedy, state.step)
    shaped = shape_scores(given, greedy, active.next_value, running, config.ppo, config.truncation, learn=False)
    beta = state.controller.beta if config.kl.in_reward else 0.0
    return shaped.rollout.mask.any(dim=1), shaped.scores + shaped.bootstrap - beta * kl.sum(dim=1)


def minibatches(experience: Experience, config: Config, step: int, epoch: int) -> Iterator[Experience]:
    """Minibatches of one epoch, in a random order of its own."""
    order = generator(config.run.seed, f"minibatches/{epoch}", step)
    return experience.minibatches(config.ppo.minibatch_size, order)


def rows_at_a_time(ppo: PPOConfig) -> int:
    """Responses of a forward pass."""
    return ppo.micro_batch_size or ppo.minibatch_size


def moved_too_far(last_epoch: list[Metrics], target_kl: float | None) -> bool:
    """True if an update of this epoch was over 1.5 x the target for approx_kl (nats a token): the epochs then stop."""
    return target_kl is not None and any(u["policy/approxkl_avg"] > 1.5 * target_kl for u in last_epoch)


def weighted_value_loss(new: PolicyOutput, micro: Experience, weight: Tensor, clip: Tensor) -> Tensor:
    """Value loss of a micro-batch, 0-d: sum of weight x value_error, plus that of the states behind the EOS.

    In squares of the reward's unit, as V is; clip (0-d): how far values may move, 0 for no clip.
    """
    error = masked_sum(weight * value_error(new.values, micro, clip), micro.mask)
    if micro.slot_returns is None:
        return error
    there = micro.slot_returns.isfinite()
    # NaN would reach the gradient even through a factor of 0, so it is replaced before the arithmetic.
    slot_error = 0.5 * (new.next_value - micro.slot_returns.where(there, 0.0)).square()
    return error + masked_sum(weight.amax(dim=1) * slot_error, there)  # the slot weighs as much as a token of its row


def value_error(values: Tensor, micro: Experience, clip: Tensor) -> Tensor:
    """0.5 max((V - G)^2, (clip(V, V_old +- c) - G)^2) with G the returns, or 0.5 (V - G)^2 where c = 0: (b,R)."""
    error = (values - micro.returns).square()
    near = micro.old_values + (values - micro.old_values).clamp(-clip, clip)
    clipped = torch.maximum(error, (near - micro.returns).square())
    return 0.5 * torch.where(clip > 0, clipped, error)


def token_weights(mask: Tensor, mean_length: Tensor, aggregation: str, max_new_tokens: int) -> Tensor:
    """Weight of every token in the loss of a minibatch, 1 / (its rows x a length): mask (b,R) -> (b,R).

    The length is, with token_mean, that of the mean response of the whole rollout (mean_length, 0-d), so that every
    token weighs alike; with sequence_mean each response's own, so that every response weighs alike; with constant
    max_new_tokens (2503.20783). The mean of the minibatches' gradients, by their rows, is then the gradient of the
    whole rollout; if each were divided by its own tokens, those of a minibatch of short responses would weigh more.
    """
    rows = mask.any(dim=1).sum().clamp(min=1)
    if aggregation == "token_mean":
        return mask / mean_length.clamp(min=1) / rows
    if aggregation == "sequence_mean":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / rows
    return mask / (rows * max_new_tokens)


def optimizer_step(state: PPOState, config: Config, log: Averages, later: DeferredChecks) -> Metrics:
    """Clip the gradient, check that it is finite, step, zero grad; return the metrics of the update.

    It waits for the device once. The deferred checks of the components' own numbers are made only if something is not
    finite: they say whose fault it is. Raises DivergedError or PluginError before the weights change.
    """
    if state.step < config.ppo.critic_warmup:  # only the value head (or critic) learns
        for parameter in state.policy.model.parameters():
            parameter.grad = None
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.policy.parameters() if p.grad is not None])
    log.add({"policy/grad_norm": norm})
    metrics = log.read()
    for name in ("loss/policy_avg", "loss/value_avg", "policy/grad_norm"):
        if not math.isfinite(metrics[name]):
            for check in later:
                check()
            raise diverged(f"{name} = {metrics[name]}", state.step)
    torch.nn.utils.clip_grads_with_norm_(state.policy.parameters(), config.ppo.grad_clip, norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.updates += 1
    return metrics


def finish_iteration(
    state: PPOState,
    experience: Experience,
    running: Moments,
    config: Config,
    metrics: Metrics,
    laps: Laps,
) -> None:
    """Advance counters, coefficients, score moments and learning rate; add where they stand to the metrics."""
    if metrics["count/updates"] and state.step >= config.ppo.critic_warmup:
        # An iteration that taught the policy nothing measured nothing: the coefficients stay.
        steer(state, experience, config, metrics)
    laps.end("time/learn")
    responses, tokens = len(experience), int(experience.rollout.response_mask.sum())
    state.schedule.step()
    state.score_moments = running
    state.step += 1
    state.episodes += responses
    state.tokens += tokens
    seconds = sum(laps.seconds.values())
    metrics |= laps.seconds
    metrics |= {"episode": float(state.episodes), "eps": responses / seconds, "tokens_per_s": tokens / seconds}


def steer(state: PPOState, experience: Experience, config: Config, metrics: Metrics) -> None:
    """Move the coefficients that have a target; add the KL(pi, pi_old) that the epochs have come to, nats a token.

    It is measured after them: before its first update a policy is the one that sampled, at a distance of 0.
    """
    state.controller.update(metrics["objective/kl"], len(experience))
    if state.penalty.target is None:
        return
    size, kls = rows_at_a_time(config.ppo), []
    with torch.no_grad():
        for _, part in experience.micro_batches(size):
            kls.append(moved_kl(state.policy.forward_pass(part.rollout).logprobs, part.old_logprobs))
    metrics |= {"penalty/coef": state.penalty.beta, "penalty/kl": float(masked_mean(torch.cat(kls), experience.mask))}
    if not metrics["count/flat_batches"]:  # advantages that are all 0 taught it nothing, so it did not move
        state.penalty.update(metrics["penalty/kl"])
