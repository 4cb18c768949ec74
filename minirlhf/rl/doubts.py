"""Advice about configurations that run but optimise something else than they seem to, or nothing at all.

Not here: combinations that are refused (config/faults.py), and what metrics show during a run (alarms.py).
"""

from collections.abc import Iterator

from minirlhf import PROJECT
from minirlhf.config.schema import Config
from minirlhf.models.optimizer import steps_too_small
from minirlhf.text.foreign import ForeignTokenizer
from minirlhf.text.tokenizer import Tokenizer


def doubts(config: Config) -> list[str]:
    """Sentences about choices that optimise something else than they seem to, each with the reason."""
    return [*kl_doubts(config), *idle_doubts(config), *other_doubts(config)]


def template_doubts(c: Config, tokenizer: Tokenizer) -> list[str]:
    """A sentence on prompts of the user's own that a model with a chat template gets as plain text; one, or none."""
    made_for = isinstance(tokenizer, ForeignTokenizer) and tokenizer.template is not None
    if not made_for or c.corpus.chat or c.corpus.prompts is None:
        return []
    return [
        "this model has a template for conversations, and gets corpus.prompts as plain text that it goes on from: if "
        "they are to be answered, corpus.template = 'chat' sends them through the template"
    ]


def idle_doubts(c: Config) -> Iterator[str]:
    """Yield doubts about settings by which the policy learns nothing in the whole run."""
    if c.ppo.critic_warmup >= c.ppo.iterations > 0:
        yield (
            f"ppo.critic_warmup = {c.ppo.critic_warmup} with ppo.iterations = {c.ppo.iterations}: only the value head "
            "is trained in all of them, so that the policy learns nothing; lower it, or raise ppo.iterations"
        )
    if not any(reward.weight for reward in c.rewards.values()):
        yield "every reward has weight 0: no score counts, so that nothing is learned from them; give one a weight"
    yield from steps_too_small("ppo", c.ppo.lr, c.ppo.grad_clip, c.ppo.adam_eps)


def changed_objective(c: Config) -> list[str]:
    """Settings by which a run on a problem of the exact lab optimises something else than J = its score - kl.coef KL.

    F is measured in that J whatever the run optimises. Empty if J is what it optimises. An adaptive kl.coef would be
    one, but config/faults.py refuses it.
    """
    changed = changed_score(c)
    changed += [f"loss.entropy_coef = {c.loss.entropy_coef:g}"] if c.loss.entropy_coef else []
    gamma = c.advantage.options.get("gamma", 1.0)
    return [*changed, f"advantage.gamma = {gamma}"] if gamma != 1 else changed


def changed_score(c: Config) -> list[str]:
    """Settings by which a run on a problem of the exact lab is paid another score than the problem's; empty if none."""
    changed = []
    if [reward.use.removeprefix(f"{PROJECT}:") for reward in c.rewards.values()] != ["problem"]:
        changed.append(f"rewards = {', '.join(c.rewards)}")
    for label, reward in c.rewards.items():
        changed += [f"rewards.{label}.weight = {reward.weight:g}"] if reward.weight != 1 else []
        changed += [f"rewards.{label}.normalize = true"] if reward.normalize else []
        changed += [f"rewards.{label}.clip = {reward.clip:g}"] if reward.clip else []
    return [*changed, *score_rules(c)]


def score_rules(c: Config) -> list[str]:
    """Settings that change the sum of the rewards before the policy learns from it."""
    rules = ["ppo.score_normalize = true"] if c.ppo.score_normalize else []
    rules += [f"ppo.score_clip = {c.ppo.score_clip:g}"] if c.ppo.score_clip is not None else []
    return [*rules, f"truncation.rule = {c.truncation.rule}"] if c.truncation.rule != "keep" else rules


def other_doubts(c: Config) -> Iterator[str]:
    """Yield doubts about advantage function, loss and other settings."""
    if c.exact.problem and (changed := changed_objective(c)):
        yield (
            f"optimality F of {c.exact.problem} is that of its own score - {c.kl.coef:g} KL, and this run optimises "
            f"something else ({', '.join(changed)}): its best F may be below 1"
        )
    if c.corpus.preferences and not any(r.use.removeprefix(f"{PROJECT}:") == "trained" for r in c.rewards.values()):
        yield "corpus.preferences: no reward is trained from these comparisons; choose it by --reward trained"
    updates = c.ppo.epochs * -(-c.ppo.prompts_per_iteration * c.ppo.responses_per_prompt // c.ppo.minibatch_size)
    function, loss = c.advantage.function.removeprefix(f"{PROJECT}:"), c.loss.policy
    if loss.removeprefix(f"{PROJECT}:") == "pg" and updates > 1:
        yield (
            f"loss pg with {updates} updates a rollout: it has no importance ratio, so from the second update on it is "
            "the gradient of a policy that is gone; use ratio, or one epoch of one minibatch"
        )
    if function == "grpo":
        yield (
            "advantage grpo: the division by each group's standard deviation weighs prompts by how little their "
            "responses differ, which is not the gradient of the mean score; dr_grpo leaves it out"
        )
    if function in ("rloo", "dr_grpo") and c.advantage.whiten in ("batch", "population"):
        yield (
            f"advantage {function} with whiten = {c.advantage.whiten}: the batch's standard deviation changes from one "
            "rollout to the next and with it the size of the step; use none"
        )
    if c.advantage.options.get("gamma", 1.0) != 1.0 and c.kl.coef and c.kl.in_reward:
        yield (
            f"advantage.gamma = {c.advantage.options['gamma']} with the KL in the reward: later KL counts less, so "
            "what is optimised is not score - beta KL of the sequence"
        )
    if c.loss.aggregation == "sequence_mean":
        yield (
            "loss.aggregation = sequence_mean: a token of a short response weighs more than one of a long response, "
            "which is not the gradient of the mean score where lengths differ; token_mean and constant are"
        )


def kl_doubts(config: Config) -> list[str]:
    """Doubts about the KL estimator in its place (in the reward, in the loss, or in both)."""
    owner, _, estimator = config.kl.estimator.rpartition(":")
    place = config.kl.place
    if not config.kl.coef or owner not in ("", PROJECT):
        return []
    reasons = {
        ("exact", "reward"): "given the tokens before it, the exact KL does not depend on the token taken, so only the "
        "KL of later tokens is penalised (none at all for responses of one token); kl.place=both has the full gradient",
        ("k1", "loss"): "the gradient of k1 in the loss is zero in expectation: it regularises nothing; use k2 or k3 "
        "in the loss, or k1 in the reward",
        ("k2", "reward"): "k2 in the reward is not the gradient of a KL, because k2 is biased as an estimate; use k1",
        ("k3", "reward"): "k3 in the reward is not the gradient of the KL: runs climb, then collapse; use k1",
        (
            "ratio_k3",
            "reward",
        ): "ratio_k3 in the reward is k3 (the ratio is 1 where the rewards are made), not the "
        "gradient of the KL: runs climb, then collapse; use k1",
        ("ratio_k3", "both"): "ratio_k3 in both places counts each token's own KL twice, in the reward and through the "
        "ratio; use exact, k1 or k3",
        ("ratio_k3", "loss"): "the gradient of each token's KL given those before it, as k2's: later KL is left out",
        ("abs", "reward"): "|log ratio| in the reward is a distance, not a KL, and pulls in both directions; use k1",
        ("k2", "both"): "k2 in both places is the gradient of E[k2], which is not the KL; use exact, k1 or k3",
        ("abs", "both"): "|log ratio| is a distance, not a KL; use exact, k1 or k3",
        ("abs", "loss"): "the gradient of |log ratio| has one size at every distance and is not that of a KL; use k2",
        ("exact", "loss"): "the KL of each token given those before it: how a token changes later KL is left out",
        ("k2", "loss"): "the gradient of each token's KL given those before it: later KL is left out",
        ("k3", "loss"): "the gradient of the reverse direction KL(ref, policy), token by token (as in GRPO)",
    }
    reason = reasons.get((estimator, place))
    return [f"kl {estimator} in {place}: {reason}"] if reason else []
