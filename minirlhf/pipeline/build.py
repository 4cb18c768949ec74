"""Building a run's objects from its configuration: components, rewards, policy, reference, optimiser."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf import PROJECT
from minirlhf.components.component import Built
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.errors import InputError
from minirlhf.models.optimizer import AdamW
from minirlhf.models.policy import Policy
from minirlhf.pipeline.rewards import Scoring
from minirlhf.ppo import Parts, PPOState
from minirlhf.rewards.call import RewardModels, Scale
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.stages.base import Base, reference_of, sampler_of
from minirlhf.stages.data import Prompts, PromptStream
from minirlhf.stages.preferences import reward_model_place
from minirlhf.tensors import Moments, Whitening

TRAINED = ("trained", f"{PROJECT}:trained")  # the reward that may wait for a reward model


@dataclass(frozen=True)
class Components:
    """The chosen components but for the rewards, built once a run."""

    kl: Built
    advantage: Built
    loss: Built
    observers: list[Built]


def build_components(config: Config, registry: Registry, device: torch.device) -> Components:
    """Resolve names and options; a class is constructed here (and may load what it needs)."""
    return Components(
        kl=registry.find("kl", config.kl.estimator).build(config.kl.options, device=device),
        advantage=registry.find("advantage", config.advantage.function).build(config.advantage.options, device=device),
        loss=registry.find("loss", config.loss.policy).build(config.loss.options, device=device),
        observers=[registry.find("observer", name).build({}, device=device) for name in config.run.observers],
    )


def build_rewards(
    config: Config, registry: Registry, device: torch.device, built: Mapping[str, Built] | None = None
) -> RewardModels:
    """The rewards, each with its weight, and what is done to its score before that; `built` are there already."""
    built = dict(built or {})
    for label, reward in config.rewards.items():
        if label not in built:
            built[label] = registry.find("reward", reward.use).build(reward.options, device=device)
    return RewardModels(
        [(label, reward.weight, built[label]) for label, reward in config.rewards.items()],
        {label: Scale(reward.normalize, reward.clip) for label, reward in config.rewards.items()},
    )


def whitening(config: Config, advantage: Built) -> Whitening:
    """`auto`: over the batch for functions of V; none for the others, which it would give a baseline and a scale that
    they leave out (or took out) on purpose."""
    chosen = config.advantage.whiten
    if chosen == "auto":
        return "batch" if advantage.names("values") else "none"
    return chosen


def set_up(config: Config) -> torch.device:
    """Threads and device; a sum over many elements depends on the number of threads, so it is the config's."""
    torch.set_num_threads(config.run.threads)
    return resolve_device(config.run.device)


def with_reward_model(config: Config) -> tuple[Config, list[str]]:
    """Fill in where the reward model of `corpus.preferences` is, or will be, for rewards `trained` without a path.

    Returns the config, and the labels of the rewards that wait for it.
    """
    waiting = [label for label, r in config.rewards.items() if r.use in TRAINED and not r.options.get("path")]
    if config.corpus.preferences is None or not waiting:
        return config, []
    path = str(reward_model_place(config))
    filled = {
        label: r.model_copy(update={"options": {**r.options, "path": path}}) if label in waiting else r
        for label, r in config.rewards.items()
    }
    return config.model_copy(update={"rewards": filled}), waiting


def prepare_ppo(
    config: Config, components: Components, scoring: "Scoring", base: Base, prompts: Prompts, device: torch.device
) -> tuple[PPOState, Parts]:
    """Active policy and reference from one base, optimiser, schedule, controller, and the callables of the loop."""
    tokenizer, ppo = base.tokenizer, config.ppo
    policy = Policy(base.trunk, sampler_of(config, tokenizer), separate_critic=config.model.separate_critic).to(device)
    optimizer = AdamW(policy.parameters(), lr=ppo.lr, eps=ppo.adam_eps, weight_decay=0.0)
    total = max(1, ppo.iterations)
    schedule = LambdaLR(optimizer, lambda i: 1.0 if ppo.schedule == "constant" else max(0.0, 1 - i / total))
    state = PPOState(
        policy=policy,
        reference=reference_of(config, policy, tokenizer),
        optimizer=optimizer,
        schedule=schedule,
        controller=KLController(
            config.kl.coef, config.kl.target if config.kl.controller == "adaptive" else None, config.kl.horizon
        ),
        penalty=Penalty(config.loss.penalty, config.loss.penalty_target),
        score_moments=Moments(0.0, 0.0, 0),
    )
    stream = PromptStream(
        prompts.train, tokenizer, config.run.seed, ppo.prompts_per_iteration, ppo.responses_per_prompt, device
    )
    parts = Parts(
        prompts=stream,
        rewards=scoring,
        kl=components.kl,
        advantage=components.advantage,
        loss=components.loss,
        whitening=whitening(config, components.advantage),
        tokenizer=tokenizer,
    )
    return state, parts


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one; a device that is not there is refused (InputError)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there", "run.device", "use --device cpu, or auto")
    return device
