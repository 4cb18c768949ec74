"""Rollouts to the reward models and back to tensors: in the time that they have, and what happens when one fails.

Not here: how a reward is called, checked and summed (scoring.py), and what the rules do to the sum (shaping.py).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, PluginError
from minirlhf.events import Emit
from minirlhf.models.generate import generate
from minirlhf.models.policy import Reference
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.call import RewardModels, call_rewards
from minirlhf.rewards.shape import Scores
from minirlhf.stages.data import batch
from minirlhf.stages.evaluate import ROWS
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt
from minirlhf.text.tokenizer import Tokenizer

MOST_SKIPS = 3  # iterations in a row whose reward may fail where they are skipped
SCALE_RESPONSES = 256  # of the reference, for the mean and standard deviation of a reward that is normalised


@dataclass
class Scoring:
    """The rewards as the loop calls them, and what is to happen when one fails (`run.on_reward_error`).

    What it remembers is part of a checkpoint: failures in a row, the iteration of the last one, and the scale of
    rewards that are normalised (measured again, a reward that is not deterministic would have another one).
    """

    models: RewardModels
    config: Config
    tokenizer: Tokenizer
    emit: Emit
    failed: int = 0  # iterations in a row
    last: int = -1  # the last of them
    metrics: dict[str, float] = field(default_factory=dict)  # of the last scores that it gave

    def __call__(self, rollout: Rollout, step: int) -> Scores:
        try:
            scored = call_rewards(self.models, rollout, step, self.config, self.tokenizer).tensors(rollout)
        except PluginError as fault:
            if step != self.last:  # an iteration may ask twice: for its responses and for the most likely ones
                self.failed = self.failed + 1 if step == self.last + 1 else 1
            self.last = step
            if self.config.run.on_reward_error == "abort" or self.failed > MOST_SKIPS:
                raise
            self.emit({"event": "warning", "message": f"iteration {step + 1} teaches nothing: {fault}"})
            self.metrics["count/reward_errors"] = 1.0
            nothing = torch.zeros(len(rollout), device=rollout.mask.device)
            scored = Scores(
                nothing, nothing.bool(), torch.zeros_like(rollout.mask, dtype=nothing.dtype),
                {"count/unscored": float(len(rollout))},
            )  # fmt: skip
        scored.metrics["count/reward_errors"] = float(step == self.last)
        self.metrics = scored.metrics
        return scored

    def state_dict(self) -> dict[str, Any]:
        """Floats as hex: they come back to the bit."""
        scales = {label: [shape.mean.hex(), shape.std.hex()] for label, shape in self.models.scales.items()}
        return {"failed": self.failed, "last": self.last, "scales": scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.failed, self.last = int(state["failed"]), int(state["last"])
            for label, shape in self.models.scales.items():
                mean, std = (float.fromhex(x) for x in state["scales"][label])
                self.models.scales[label] = replace(shape, mean=mean, std=std)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
            raise CheckpointError(f"not what the rewards remember ({fault})", "", "use another checkpoint") from None

    def tell(self, method: str, *arguments: Any) -> Any:
        """As of a component: what is remembered is saved and restored with theirs."""
        return getattr(self, method)(*arguments)

    def error(self, what: str, todo: str) -> PluginError:
        return PluginError(f"the rewards {what}", "", todo)


def fit_rewards(
    config: Config,
    rewards: RewardModels,
    reference: Reference,
    prompts: list[Prompt],
    tokenizer: Tokenizer,
    device: torch.device,
    emit: Emit,
) -> None:
    """Normalise the rewards that want it on the reference's own responses to training prompts."""
    wanted = RewardModels([model for model in rewards.models if model[0] in rewards.normalized])
    if not wanted.models:
        return
    random = generator(config.run.seed, "reward-scale/prompts", 0)
    picks = torch.randint(len(prompts), (SCALE_RESPONSES,), generator=random).tolist()
    chosen = batch([prompts[i] for i in picks], tokenizer, device)
    by_label: dict[str, list[float | None]] = {}
    for index, part in enumerate(chosen.parts(ROWS)):
        rollout = generate(
            reference.policy, part, tokenizer, max_new_tokens=config.sampler.max_new_tokens,
            generator=generator(config.run.seed, "reward-scale", index),
        )  # fmt: skip
        for label, values in call_rewards(wanted, rollout, 0, config, tokenizer).by_label.items():
            by_label.setdefault(label, []).extend(values)
    rewards.fit(by_label)
    for label in rewards.normalized:
        shape = rewards.scales[label]
        emit({"event": "reward_scale", "label": label, "mean": shape.mean, "std": shape.std})
