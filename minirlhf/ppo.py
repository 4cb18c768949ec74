"""The loop: PPO on a language model, in the order of the notes (N19). The right margin is their pseudocode.

`train` is a generator over a state that the caller made: it yields after every iteration, and between two yields the
state is complete, so saving is state to file and resuming is the same call. It receives the chosen components as
callables; it opens no file, prints nothing, and knows neither plugins nor their registry.

KL to the reference goes into the reward, into the loss, or both (`kl.place`). Whitening divides the reward's part of
the gradient by the scale of the advantages, so the coefficient of a KL loss is divided by that scale too: beta then
means the same in every place.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.components.checks import Later, check_loss, check_tensor
from minirlhf.components.component import Built
from minirlhf.config.schema import Config, PPOConfig
from minirlhf.errors import DivergedError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import LogDist, PolicyOutput, Rollout
from minirlhf.rewards.shape import Scored, ShapedScores, one_slot_more, place_rewards, shape_scores
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.rl.experience import Experience
from minirlhf.rl.metrics import Averages, Metrics, rollout_metrics, update_metrics
from minirlhf.streams import generator
from minirlhf.tensors import LOG_CLAMP, Moments, Whitening, importance_ratio, masked_sum, whiten
from minirlhf.text.tokenizer import Tokenizer


@dataclass
class PPOState:
    """All that one iteration hands to the next; complete between two yields of `train`."""

    policy: Policy
    reference: Reference
    optimizer: Optimizer
    schedule: LambdaLR
    controller: KLController
    penalty: Penalty
    score_moments: Moments
    step: int = 0  # iterations done
    updates: int = 0  # optimiser steps done
    episodes: int = 0  # responses sampled
    tokens: int = 0  # response tokens sampled


@dataclass(frozen=True)
class Parts:
    """What the loop calls: prompts(step), reward_models(rollout, step), and the three chosen components."""

    prompts: Callable[[int], PromptBatch]
    reward_models: Callable[[Rollout, int], Scored]
    kl: Built
    advantage: Built
    loss: Built
    whitening: Whitening
    tokenizer: Tokenizer

    @property
    def learns_values(self) -> bool:
        """An advantage function that does not read V gives it no target: the value loss is off."""
        return self.advantage.names("values")


def train(state: PPOState, parts: Parts, config: Config) -> Iterator[tuple[int, Experience, Metrics]]:
    """Iterate until `ppo.iterations`; yields (step, experience, metrics) after the epochs of each iteration."""
    ppo, seed = config.ppo, config.run.seed
    while state.step < ppo.iterations:
        step, beta, started = state.step, state.controller.beta, perf_counter()
        prompts = parts.prompts(step)
        rollout = sample(state, parts, config, prompts)  # response <- generate with the active policy
        sampled = perf_counter()
        scored = parts.reward_models(rollout, step)  # scores <- reward model on prompt + response
        with torch.no_grad():
            active = state.policy.score(rollout)  # active <- forward pass: all_probs, probs, all_values
            entropy = active.entropy()
            reference = state.reference.score(rollout)  # reference <- forward pass of the frozen model
            kl = rollout_kl(parts.kl, active, reference, rollout, config)  # kl <- KL(active, reference)
        shaped = shape_scores(scored, rollout, active.next_value, state.score_moments, ppo, config.truncation)
        shaped, greedy = greedy_scores(state, parts, config, prompts, shaped)
        mask = shaped.rollout.mask
        penalty = kl * (beta if config.kl.place in ("reward", "both") else 0.0)
        rewards = place_rewards(shaped.scores, scored.token_rewards, penalty, mask)  # rewards <- scores, KL
        known = {"rewards": rewards, "values": active.values, "mask": mask, "scores": shaped.scores, "kl": kl,
                 "logprobs": active.logprobs, "ref_logprobs": reference.logprobs, "group": rollout.group,
                 "terminated": rollout.terminated, "bootstrap_values": shaped.bootstrap, **greedy}  # fmt: skip
        plain = advantages_of(parts, known, scored, penalty, active, shaped.rollout, ppo)  # advantages <- f(V, r)
        returns = plain + active.values  # returns <- advantages + values, before whitening
        advantages, scale, flat = whiten(plain, mask, parts.whitening)
        experience = Experience(
            rollout=shaped.rollout, old_logprobs=active.logprobs, ref_logprobs=reference.logprobs,
            old_values=active.values, kl=kl, scores=shaped.scores, rewards=rewards, advantages=advantages,
            returns=returns, ref_log_dist=reference.log_dist,
            slot_returns=slot_returns(shaped, scored, ppo))  # fmt: skip
        check_finite(experience, step)
        collected, updates, done = perf_counter(), list[Metrics](), list[Metrics]()
        for epoch in range(ppo.epochs):  # for each epoch
            batches = experience.minibatches(ppo.minibatch_size, generator(seed, f"minibatches/{epoch}", step))
            # new <- forward pass ... zero grad: see `update`
            done = [update(state, batch, parts, config, beta / scale) for batch in batches]
            updates += done
            if ppo.target_kl and any(u["policy/approxkl_avg"] > 1.5 * ppo.target_kl for u in done):
                break
        metrics = rollout_metrics(experience, entropy, penalty, beta, parts.tokenizer.eos_id)
        metrics |= scored.metrics | update_metrics(updates, beta, float(state.schedule.get_last_lr()[0]))
        check_same_policy(metrics["policy/first_log_ratio"], step, ppo.precision)
        ended = perf_counter()
        metrics |= {"time/rollout": sampled - started, "time/score": collected - sampled}
        metrics |= {"time/learn": ended - collected, "count/flat_batches": float(flat)}
        state.score_moments = shaped.running
        finish_iteration(state, experience, metrics, done, ended - started)
        yield state.step, experience, metrics


def update(state: PPOState, batch: Experience, parts: Parts, config: Config, beta: float) -> Metrics:
    """One optimiser step on a minibatch; micro-batches of any size add up to the same gradient.

    beta: the coefficient of a KL in the loss, already divided by the advantages' scale. Every per-token quantity is
    weighted by its share of the whole *minibatch*, so splitting it further changes nothing.
    """
    weights = token_weights(batch.mask, config.loss.aggregation, config.sampler.max_new_tokens)
    log, later = Averages(tokens=batch.mask.sum()), Later()
    for rows, micro in batch.micro_batches(config.ppo.micro_batch_size or config.ppo.minibatch_size):
        weight, mask = weights[rows], micro.mask
        new = state.policy.score(micro.rollout)  # new <- forward pass of the active policy on the same data
        value_loss = masked_sum(weight * value_error(new.values, micro, config.loss.value_clip or None), mask)
        if micro.slot_returns is not None:
            value_loss = value_loss + slot_loss(new.next_value, micro, weight)
        surrogate, logged = policy_loss(parts.loss, new, micro, state.penalty.beta, later)
        loss = masked_sum(weight * surrogate, mask)  # ratio, policy loss <- mean(-advantages * ratio), N10 or N11
        log.add({"loss/policy_avg": loss, "loss/value_avg": value_loss})
        if parts.learns_values:
            loss = loss + config.loss.value_coef * value_loss  # loss <- policy loss + rate * value loss
        if config.kl.place in ("loss", "both"):
            loss = loss + beta * masked_sum(weight * loss_kl(parts.kl, new, micro, later), mask)
        if config.loss.entropy_coef:
            loss = loss - config.loss.entropy_coef * masked_sum(weight * new.entropy(), mask)
        loss.backward()  # type: ignore[no-untyped-call]
        log.add_means(drift(new, micro, config.loss.value_clip or None) | logged, mask)
        log.add_largest("log_ratio", (new.logprobs - micro.old_logprobs).abs(), mask)
    return optimizer_step(state, config, log, later)  # backward, optimizer step, zero grad


def sample(state: PPOState, parts: Parts, config: Config, prompts: PromptBatch) -> Rollout:
    """This iteration's responses, from its own stream of randomness."""
    return generate(
        state.policy, prompts, parts.tokenizer, max_new_tokens=config.sampler.max_new_tokens,
        generator=generator(config.run.seed, "rollout", state.step),
    )  # fmt: skip


def greedy_scores(
    state: PPOState, parts: Parts, config: Config, prompts: PromptBatch, shaped: ShapedScores
) -> tuple[ShapedScores, dict[str, Tensor]]:
    """Shaped return (B,) of the most likely response to each prompt: its score after the same rules, minus beta KL
    where the KL is in the reward. Rows whose most likely response has no score leave the rollout: there is nothing to
    compare them with. Decoded and scored only if a function asks for it: else nothing, and all rows stay."""
    if not parts.advantage.names("greedy_scores"):
        return shaped, {}
    greedy = generate(
        state.policy, prompts, parts.tokenizer, max_new_tokens=config.sampler.max_new_tokens,
        generator=generator(config.run.seed, "greedy", state.step),
        sampler=replace(state.policy.sampler, temperature=0.0),
    )  # fmt: skip
    with torch.no_grad():
        active, reference = state.policy.score(greedy), state.reference.score(greedy)
        kl = rollout_kl(parts.kl, active, reference, greedy, config)
    scored = parts.reward_models(greedy, state.step)
    rules = (shaped.running, config.ppo, config.truncation)
    scores = shape_scores(scored, greedy, active.next_value, *rules, learn=False).scores
    scores = scores if config.kl.place == "loss" else scores - state.controller.beta * kl.sum(dim=1)
    return replace(shaped, rollout=shaped.rollout.keeping(scored.valid)), {"greedy_scores": scores}


def advantages_of(
    parts: Parts, known: dict[str, Tensor], scored: Scored, penalty: Tensor, active: PolicyOutput, rollout: Rollout,
    ppo: PPOConfig,
) -> Tensor:  # fmt: skip
    """What the advantage function gives, checked: (B,R). With ppo.score_slot = "after" on rows one slot longer."""
    mask = known["mask"]
    if ppo.score_slot == "after":
        known = one_slot_more(known, scored, penalty, rollout.terminated, active.next_value)
    found = check_tensor(parts.advantage, parts.advantage(known), known["mask"], known)
    return torch.where(mask, found[:, : mask.shape[1]], 0.0)


def slot_returns(shaped: ShapedScores, scored: Scored, ppo: PPOConfig) -> Tensor | None:
    """With ppo.score_slot = "after", what V behind the EOS should be: the score that lands there; NaN without (B,)."""
    if ppo.score_slot == "last":
        return None
    mask = shaped.rollout.mask
    rest = shaped.scores - torch.where(mask, scored.token_rewards, 0.0).sum(dim=1)
    return torch.where(shaped.rollout.terminated & mask.any(dim=1), rest, float("nan"))


def slot_loss(values: Tensor, micro: Experience, weight: Tensor) -> Tensor:
    """0.5 (V - score)^2 of the states behind the EOS, each weighing as much as a token of its row: 0-d."""
    assert micro.slot_returns is not None, "only with ppo.score_slot = after"
    there = micro.slot_returns.isfinite()
    error = 0.5 * (values - micro.slot_returns.where(there, 0.0)).square()  # NaN would reach the gradient through 0
    return masked_sum(weight.amax(dim=1) * error, there)


def rollout_kl(kl: Built, active: PolicyOutput, reference: PolicyOutput, rollout: Rollout, config: Config) -> Tensor:
    """The estimator's (B,R) nats a token over a whole rollout; distributions exist for a micro-batch at a time."""
    size = config.ppo.micro_batch_size or config.ppo.minibatch_size
    parts = []
    for start in range(0, len(rollout), size):
        rows = slice(start, start + size)
        known = {"logprobs": active.logprobs[rows], "old_logprobs": active.logprobs[rows],
                 "ref_logprobs": reference.logprobs[rows], "mask": rollout.mask[rows]}  # fmt: skip
        parts.append(estimate_kl(kl, known, active.log_dist, reference.log_dist, rows))
    return torch.cat(parts)


def loss_kl(kl: Built, new: PolicyOutput, micro: Experience, later: Later) -> Tensor:
    """The estimator's (b,R) nats a token of the policy that is being trained, with its gradient."""
    known = {"logprobs": new.logprobs, "old_logprobs": micro.old_logprobs,
             "ref_logprobs": micro.ref_logprobs, "mask": micro.mask}  # fmt: skip
    return estimate_kl(kl, known, new.log_dist, micro.ref_log_dist, slice(None), later)


def estimate_kl(
    kl: Built, known: dict[str, Tensor], dist: LogDist, ref_dist: LogDist, rows: slice, later: Later | None = None
) -> Tensor:
    """Call the estimator; asking for the distributions is what makes them be computed."""
    if kl.names("log_dist"):
        known["log_dist"] = dist(rows)
    if kl.names("ref_log_dist"):
        with torch.no_grad():
            known["ref_log_dist"] = ref_dist(rows)
    return check_tensor(kl, kl(known), known["mask"], known, later)


def policy_loss(
    loss: Built, new: PolicyOutput, micro: Experience, beta: float, later: Later | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss component's (b,R) value a token, and what it logs beside: (b,R) or 0-d tensors."""
    known = {"logprobs": new.logprobs, "old_logprobs": micro.old_logprobs, "ref_logprobs": micro.ref_logprobs,
             "advantages": micro.advantages, "mask": micro.mask, "beta": beta}  # fmt: skip
    values, logged = check_loss(loss, loss(known), micro.mask, known, later)
    return values, {f"policy/{name}_avg": value for name, value in logged.items()}


def value_error(values: Tensor, micro: Experience, clip: float | None) -> Tensor:
    """0.5 max((V - R)^2, (clip(V, V_old +- c) - R)^2), or 0.5 (V - R)^2 without a clip: (b,R)."""
    error = (values - micro.returns).square()
    if clip is not None:
        near = micro.old_values + (values - micro.old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - micro.returns).square())
    return 0.5 * error


def token_weights(mask: Tensor, aggregation: str, max_new_tokens: int) -> Tensor:
    """The share of every token in the loss of a minibatch, (b,R): they sum to 1 but for `constant`.

    token_mean: every token alike; sequence_mean: every response alike, its tokens alike within it; constant: divided
    by rows x max_new_tokens, so that a long response weighs more (2503.20783).
    """
    rows = mask.any(dim=1).sum().clamp(min=1)
    if aggregation == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if aggregation == "sequence_mean":
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / rows
    return mask / (rows * max_new_tokens)


@torch.no_grad()
def drift(new: PolicyOutput, micro: Experience, clip: float | None) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled, (b,R) each."""
    log_ratio = new.logprobs - micro.old_logprobs
    return {
        "policy/approxkl_avg": 0.5 * log_ratio.square(),
        "policy/clamped_avg": log_ratio.abs() > LOG_CLAMP,
        "val/ratio": importance_ratio(new.logprobs, micro.old_logprobs),
        "val/clipfrac_avg": (new.values - micro.old_values).abs() > (float("inf") if clip is None else clip),
    }


def optimizer_step(state: PPOState, config: Config, log: Averages, later: Later) -> Metrics:
    """Clip the gradient, make sure that it is finite, step, zero grad. One device synchronisation: only where something
    is not finite do the components' own numbers have to say whose fault it is."""
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
    state: PPOState, experience: Experience, metrics: Metrics, last_epoch: list[Metrics], seconds: float
) -> None:
    """Move the counters, the coefficients and the learning rate on; log where they stand."""
    responses, tokens = len(experience), int(experience.rollout.response_mask.sum())
    if last_epoch:  # where nothing was learned from nothing was measured: coefficients stay
        state.controller.update(metrics["objective/kl"], responses)
        state.penalty.update(sum(u["policy/approxkl_avg"] for u in last_epoch) / len(last_epoch))
    state.schedule.step()
    state.step += 1
    state.episodes += responses
    state.tokens += tokens
    metrics |= {"episode": float(state.episodes), "eps": responses / seconds, "tokens_per_s": tokens / seconds}


def check_finite(experience: Experience, step: int) -> None:
    """NaN or infinity on the mask is found before anything learns from it, and named."""
    names = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
    fine = torch.stack([torch.where(experience.mask, getattr(experience, n), 0.0).isfinite().all() for n in names])
    for name, ok in zip(names, fine.tolist(), strict=True):
        if not ok:
            raise diverged(f"{name} is not finite", step)


def check_same_policy(first_log_ratio: float, step: int, precision: str = "float32") -> None:
    """Before the first optimiser step the new policy *is* the old one: the ratio is 1 but for rounding.

    In float32 it differs by 1e-5 at most; 1e-3 means that sampling, scoring and training disagree about what the
    policy's distribution is (dropout, another temperature, another mask): every ratio would be wrong. In bfloat16
    rounding alone can be more, and is only logged.
    """
    if precision == "float32" and first_log_ratio > 1e-3:
        raise RuntimeError(f"iteration {step + 1}: |log ratio| = {first_log_ratio} before any update; expected < 1e-5")


def diverged(what: str, step: int) -> DivergedError:
    return DivergedError(
        what, f"iteration {step + 1}", "the weights are as before this update; try a lower ppo.lr or a higher kl.coef"
    )
