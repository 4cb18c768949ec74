"""From names in a configuration to objects: the device, the components and the rewards.

Not here: anything that needs a model or a prompt (training.py).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from minirlhf import PROJECT
from minirlhf.components.component import Built
from minirlhf.components.registry import Registry
from minirlhf.config.schema import AdvantageConfig, Config, RewardConfig, RunConfig
from minirlhf.errors import InputError
from minirlhf.heap import keep_memory
from minirlhf.rewards.call import RewardModels, Scale
from minirlhf.stages.preferences import reward_model_directory
from minirlhf.tensors import Whitening

TRAINED_REWARD_NAMES = ("trained", f"{PROJECT}:trained")  # the reward whose model the run itself may train


@dataclass(frozen=True)
class Components:
    """The chosen components except the rewards, built once a run."""

    kl: Built
    advantage: Built
    loss: Built
    observers: list[Built]


def set_up(run: RunConfig) -> torch.device:
    """Set the number of CPU threads (the rounding of long sums depends on it) and return the device."""
    torch.set_num_threads(run.threads)
    keep_memory()
    return resolve_device(run.device)


def resolve_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA if there is one, never MPS. InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"device {name!r} is not there", "run.device", "use --device cpu, or auto")
    return device


def build_components(config: Config, registry: Registry, device: torch.device) -> Components:
    """Resolve names and options; a class is constructed here (and may load what it needs).

    PluginError for a term of the loss that sees nothing of the policy: its gradient is 0, so it would train nothing.
    """
    found = Components(
        kl=registry.find("kl", config.kl.estimator).build(config.kl.options, device=device),
        advantage=registry.find("advantage", config.advantage.function).build(config.advantage.options, device=device),
        loss=registry.find("loss", config.loss.policy).build(config.loss.options, device=device),
        observers=[registry.find("observer", name).build({}, device=device) for name in config.run.observers],
    )
    if not found.loss.names("logprobs"):
        raise found.loss.error(
            "does not take logprobs, so that it has no gradient to learn from", "take it as an input"
        )
    if config.kl.in_loss and config.kl.coef and not (found.kl.names("logprobs") or found.kl.names("log_dist")):
        what = f"takes neither logprobs nor log_dist, so that with kl.place = {config.kl.place} it has no gradient"
        raise found.kl.error(what, "take one of them as an input")
    return found


def build_rewards(
    rewards: Mapping[str, RewardConfig],
    registry: Registry,
    device: torch.device,
    built: Mapping[str, Built] | None = None,
) -> RewardModels:
    """Build the rewards of each label, with weight and scale; a label that is in `built` is not built again."""
    ready = dict(built or {})
    for label, reward in rewards.items():
        if label not in ready:
            check_trained(label, reward)
            ready[label] = registry.find("reward", reward.use).build(reward.options, device=device)
    return RewardModels(
        [(label, reward.weight, ready[label]) for label, reward in rewards.items()],
        {label: Scale(reward.normalize, reward.clip) for label, reward in rewards.items()},
    )


def check_trained(label: str, reward: RewardConfig) -> None:
    """Refuse a reward `trained` whose path is not there (InputError that names the key)."""
    path = reward.options.get("path")
    if reward.use in TRAINED_REWARD_NAMES and isinstance(path, str) and path and not os.path.exists(path):
        todo = (
            f"give a directory that `minirlhf reward-model` has made; if it has moved: --set rewards.{label}.path=DIR"
        )
        raise InputError("this is no saved reward model (nothing is there)", path[:300], todo)


def filled_rewards(config: Config) -> tuple[dict[str, RewardConfig], list[str]]:
    """The reward sections by label, and the labels whose reward model is trained from `corpus.preferences`.

    Those are the rewards `trained` without a path; the path where their model is, or will be, is filled in.
    """
    rewards = dict(config.rewards)
    waiting = [label for label, r in rewards.items() if r.use in TRAINED_REWARD_NAMES and not r.options.get("path")]
    if config.corpus.preferences is None or not waiting:
        return rewards, []
    path = str(reward_model_directory(config))
    for label in waiting:
        options = {**rewards[label].options, "path": path}
        rewards[label] = rewards[label].model_copy(update={"options": options})
    return rewards, waiting


def score_about(config: Config) -> str:
    """Sentence on what a score is in this run, for its first lines: which rewards give it, and which way is better."""
    labels = list(config.rewards)
    one = f"what the reward {labels[0]} gives a response"
    what = one if len(labels) == 1 else f"weighted sum of {', '.join(labels)}"
    return f"score (higher is better): {what}"


def whitening(settings: AdvantageConfig, advantage: Built) -> Whitening:
    """The scope of whitening; `auto` = over the batch for functions that read V, none for the others.

    Whitening would give those a baseline and a scale which they leave out, or have applied already, on purpose.
    """
    if settings.whiten == "auto":
        return "batch" if advantage.names("values") else "none"
    return settings.whiten
