"""The rewards as the loop calls them: with the answer to a reward that fails, and with the scale of normalised ones.

Not here: one call with its checks and time limit (rewards/call.py), and the rules for the sum (rewards/shape.py).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minirlhf.builtin.trained import trained
from minirlhf.errors import CheckpointError, PluginError, UsageError
from minirlhf.models.generate import generate
from minirlhf.models.policy import Reference
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.context import RunContext
from minirlhf.rewards.call import RewardModels, call_rewards
from minirlhf.rewards.shape import Scores
from minirlhf.stages.data import batch
from minirlhf.stages.evaluate import ROWS
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt
from minirlhf.text.tokenizer import Tokenizer

MOST_SKIPS = 3  # iterations in a row that may go without scores under run.on_reward_error = "skip"
SCALE_RESPONSES = 256  # responses of the reference that give a normalised reward its mean and standard deviation


@dataclass
class RewardCalls:
    """Callable (rollout, step) -> Scores that skips an iteration whose reward fails, or ends the run.

    A checkpoint stores its state: the count of failures, and the scale of normalised rewards (measured again, a reward
    that is not deterministic would get another scale).
    """

    run: RunContext
    models: RewardModels
    tokenizer: Tokenizer
    twice: bool = False  # an iteration asks a second time
    failed: int = 0  # failed iterations in a row
    last: int = -1  # the last iteration that failed
    asked: int = -1  # the iteration that asked last
    before: dict[str, Any] = field(default_factory=dict)  # states of the rewards when it asked first
    metrics: dict[str, float] = field(default_factory=dict)  # those of the last scores, which the loop holds as well

    def __call__(self, rollout: Rollout, step: int) -> Scores:
        """Scores of the B responses, step = iterations done; none are valid if a reward failed and is skipped.

        An iteration asks a second time for the most likely responses, the baseline of the first ones: rewards that
        remember judge both from the same state, and keep what they learned from the first.
        """
        config, again = self.run.config, step == self.asked
        if not again:
            self.asked, self.before = step, self.models.states() if self.twice else {}
        try:
            with self.models.forgetting() if again else nullcontext():
                if again:
                    self.models.restore(self.before)
                scores = call_rewards(self.models, rollout, step, config, self.tokenizer).tensors(rollout)
        except PluginError as fault:
            if step != self.last:
                self.failed = self.failed + 1 if step == self.last + 1 else 1
            self.last = step
            if config.run.on_reward_error == "abort" or self.failed > MOST_SKIPS:
                raise
            self.run.warn(f"iteration {step + 1} teaches nothing: {fault}")
            self.metrics["count/reward_errors"] = 1.0  # also in the iteration's first scores, if these are its second
            scores = no_scores(rollout)
        scores.metrics["count/reward_errors"] = float(step == self.last)
        self.metrics = scores.metrics
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Failures and scales; floats as hex, so that they come back to the bit."""
        scales = {label: [scale.mean.hex(), scale.std.hex()] for label, scale in self.models.scales.items()}
        return {"failed": self.failed, "last": self.last, "scales": scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore failures and scales (CheckpointError if they are malformed)."""
        try:
            self.failed, self.last = int(state["failed"]), int(state["last"])
            for label, scale in self.models.scales.items():
                mean, std = (float.fromhex(x) for x in state["scales"][label])
                self.models.scales[label] = replace(scale, mean=mean, std=std)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            raise CheckpointError(f"not what the rewards remember ({fault})", "", "use another checkpoint") from None

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call a method by name, as `Built.tell` does: checkpoints treat it like a component."""
        return getattr(self, method)(*arguments)

    def error(self, what: str, todo: str) -> PluginError:
        """A PluginError about all rewards together, as `Built.error` makes one about a component."""
        return PluginError(f"the rewards {what}", "", todo)


def no_scores(rollout: Rollout) -> Scores:
    """Scores of an iteration whose reward failed: 0, and none of them valid."""
    zeros = torch.zeros(len(rollout), device=rollout.mask.device)
    token_rewards = torch.zeros_like(rollout.mask, dtype=zeros.dtype)
    return Scores(zeros, zeros.bool(), token_rewards, {"count/unscored": float(len(rollout))})


def check_lengths(rewards: RewardModels, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raise UsageError if a trained reward model reads fewer tokens than a prompt and a response may have.

    One of another tokenizer, and any that is somebody else's (its hash is None, for it encodes prompt and response
    together), is not checked here: it refuses a text that is too long for it when it meets one.
    """
    states = {label: built.state for label, _, built in rewards.models}
    models = {label: s.model for label, s in states.items() if isinstance(s, trained) and s.hash == tokenizer.hash}
    if not models:
        return  # thousands of prompts need not be encoded
    ids = tokenizer.beginnings([prompt.text for prompt in prompts], [prompt.spoken for prompt in prompts])
    longest = max(map(len, ids), default=1) + max_new_tokens
    for label, model in models.items():
        if longest > model.longest:
            what = f"reward {label!r} reads {model.longest} tokens, and prompt and response may have {longest}"
            todo = "lower sampler.max_new_tokens, or train a reward model with a larger model.max_positions"
            raise UsageError(what, f"rewards.{label}.path", todo)


def scale_doubts(rewards: RewardModels) -> list[str]:
    """Sentences on reward models of others whose scores are not normalised: their scale is unknown to the run."""
    return [
        f"reward {label!r} is somebody else's model, so that mean and standard deviation of its scores are not known: "
        f"they count in the model's own scale, beside kl.coef and other rewards; rewards.{label}.normalize = true "
        "measures both on the reference's own responses"
        for label, _, built in rewards.models
        if isinstance(built.state, trained) and built.state.foreign and label not in rewards.normalized
    ]


def fit_rewards(
    run: RunContext, rewards: RewardModels, reference: Reference, prompts: list[Prompt], tokenizer: Tokenizer
) -> None:
    """Measure mean and standard deviation of the normalised rewards on the reference's responses to these prompts.

    A reward that remembers its calls forgets these.
    """
    normalized = RewardModels([model for model in rewards.models if model[0] in rewards.normalized])
    if not normalized.models:
        return
    config = run.config
    random = generator(config.run.seed, "reward-scale/prompts", 0)
    picks = torch.randint(len(prompts), (SCALE_RESPONSES,), generator=random).tolist()
    chosen = batch([prompts[i] for i in picks], tokenizer, run.device)
    by_label: dict[str, list[float | None]] = {}
    with normalized.forgetting():
        for index, part in enumerate(chosen.parts(ROWS)):
            rollout = generate(
                reference.policy, part, tokenizer, max_new_tokens=config.sampler.max_new_tokens,
                generator=generator(config.run.seed, "reward-scale", index),
            )  # fmt: skip
            for label, values in call_rewards(normalized, rollout, 0, config, tokenizer).by_label.items():
                by_label.setdefault(label, []).extend(values)
    rewards.fit(by_label)
    for label in rewards.normalized:
        scale = rewards.scales[label]
        run.emit({"event": "reward_scale", "label": label, "mean": scale.mean, "std": scale.std})
