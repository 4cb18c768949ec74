"""Objects of the PPO stage: policy and reference from one base, optimiser, controllers, rewards, prompts, observers.

Not here: the loop (ppo.py), and what happens between two of its iterations (drive.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.models.lora import backbone_of
from minirlhf.models.optimizer import AdamW
from minirlhf.models.policy import Policy
from minirlhf.pipeline.build import Components, whitening
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.facts import data_facts, versions
from minirlhf.pipeline.observers import Observers
from minirlhf.pipeline.rewards import RewardCalls, fit_rewards
from minirlhf.pipeline.sources import Sources
from minirlhf.ppo import Parts, PPOState
from minirlhf.rewards.call import RewardModels
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.stages.base import Base, new_learner, reference_of, sampler_of
from minirlhf.stages.data import Prompts, PromptStream
from minirlhf.tensors import Moments


@dataclass(frozen=True)
class Training:
    """Everything that the PPO stage works on.

    stateful: the components with a state, by the name that checkpoints give them. facts: stored in checkpoints, to be
    compared when the run is resumed.
    """

    state: PPOState
    parts: Parts
    stateful: Mapping[str, Built | RewardCalls]
    facts: dict[str, Any]
    observers: Observers


def prepare_training(
    run: RunContext, sources: Sources, rewards: RewardModels, base: Base, prompts: Prompts
) -> Training:  # fmt: skip
    """Build the PPO stage; rewards that are to be normalised are measured here on the reference's own responses."""
    config, components, tokenizer = run.config, sources.components, base.tokenizer
    calls, ppo = RewardCalls(run, rewards, tokenizer, components.advantage.names("greedy_scores")), config.ppo
    state = initial_state(config, base, run.device, learns_values=components.advantage.names("values"))
    parts = Parts(
        prompts=PromptStream(
            prompts.train, tokenizer, config.run.seed, ppo.prompts_per_iteration, ppo.responses_per_prompt, run.device
        ),
        rewards=calls,
        kl=components.kl,
        advantage=components.advantage,
        loss=components.loss,
        whitening=whitening(config.advantage, components.advantage),
        tokenizer=tokenizer,
    )
    fit_rewards(run, rewards, state.reference, prompts.train, tokenizer)
    used = [components.kl, components.advantage, components.loss, *(built for _, _, built in rewards.models)]
    facts = data_facts(config, tokenizer, prompts, sources.reward_sections.values(), used)
    return Training(
        state,
        parts,
        stateful={**stateful_components(components, rewards), "scoring": calls},  # its name in checkpoints
        facts=versions(config.run, run.device) | facts,
        observers=Observers(components.observers, run.emit),
    )


def initial_state(config: Config, base: Base, device: torch.device, *, learns_values: bool) -> PPOState:
    """Policy and frozen reference from one base; optimiser, learning-rate schedule and controllers at their start.

    An advantage function that does not read V trains none: a critic would only cost its forward passes.
    """
    ppo, separate = config.ppo, config.model.separate_critic and learns_values
    sampler = sampler_of(config, base.tokenizer, base.trunk.config.vocab_size)
    start = Policy(base.trunk, sampler)
    trunk = new_learner(config, base.trunk, config.run.seed) if config.lora.on else base.trunk
    backbone_of(trunk).recompute = ppo.recompute  # before a critic is copied from it
    policy = Policy(trunk, sampler, separate_critic=separate).to(device)
    optimizer = AdamW(policy.parameters(), lr=ppo.lr, eps=ppo.adam_eps, weight_decay=0.0)
    total = max(1, ppo.iterations)
    schedule = LambdaLR(optimizer, lambda i: 1.0 if ppo.schedule == "constant" else max(0.0, 1 - i / total))
    return PPOState(
        policy=policy,
        reference=reference_of(config, start, base.tokenizer),
        optimizer=optimizer,
        schedule=schedule,
        controller=KLController(
            config.kl.coef, config.kl.target if config.kl.controller == "adaptive" else None, config.kl.horizon
        ),
        penalty=Penalty(config.loss.penalty, config.loss.penalty_target),
        score_moments=Moments(0.0, 0.0, 0),
        value_moments=Moments(0.0, 0.0, 0),
    )


def stateful_components(components: Components, rewards: RewardModels) -> dict[str, Built]:
    """The components with a state to save, by their names in a checkpoint."""
    named = {f"reward/{label}": built for label, _, built in rewards.models}
    named |= {"kl": components.kl, "advantage": components.advantage, "loss": components.loss}
    return {name: built for name, built in named.items() if built.stateful}
