"""Policies and reward models on disk: a trunk, whole or as an adapter, and the heads on it.

The value head (and the separate critic, if there is one) has a file of its own, so that transformers and PEFT read the
rest without a warning about unexpected keys. Not here: trunks (weights.py) and adapters (adapters.py).
"""

from pathlib import Path

import torch
from torch import Tensor

from minirlhf.errors import CheckpointError
from minirlhf.models.lora import Adapted, Trunk
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.scorer import Scorer
from minirlhf.store.adapters import (
    POINTER,
    is_adapted,
    load_adapted,
    load_backbone,
    pointed,
    save_adapter,
    save_pointer,
)
from minirlhf.store.files import read_json, write_json
from minirlhf.store.weights import (
    WEIGHTS,
    load_transformer,
    load_trunk,
    read_tensors,
    restore,
    save_tensors,
    save_transformer,
)
from minirlhf.text.foreign import load_tokenizer
from minirlhf.text.tokenizer import Tokenizer

VALUE_HEAD = "value_head.safetensors"
SCORE = "score.json"  # of a reward model: mean and std that normalise its scores, and its tokenizer's hash
CPU = torch.device("cpu")


def save_trunk(directory: Path, trunk: Trunk, tokenizer: Tokenizer) -> None:
    """Write a trunk: a whole one with its tokenizer, or an adapter with a pointer to its backbone, which has it."""
    if isinstance(trunk, Adapted):
        save_adapter(directory, trunk)
    else:
        save_transformer(directory, trunk, tokenizer)


def read_trunk(directory: Path, device: torch.device = CPU) -> Trunk:
    """Read what `save_trunk` wrote."""
    if is_adapted(directory):
        return load_adapted(directory, device)[0]
    return load_transformer(directory, device=device)


def save_reference(directory: Path, trunk: Trunk) -> None:
    """Write what a run with adapters started from: a pointer to the backbone, and its adapter if it had one."""
    if isinstance(trunk, Adapted):
        save_adapter(directory, trunk)
    else:
        save_pointer(directory, trunk)


def reference_trunk(directory: Path, device: torch.device = CPU) -> Trunk:
    """Read what `save_reference` wrote, or a whole model."""
    if is_adapted(directory) or not (directory / POINTER).is_file():
        return read_trunk(directory, device)
    source = pointed(directory)
    return load_backbone(Path(source.path), source.dtype, device, source.quantise)


def read_tokenizer(directory: Path, *, chat: bool = False) -> Tokenizer:
    """Tokenizer of a saved model: its own, or its backbone's; chat: with its chat template in use."""
    place = Path(pointed(directory).path) if is_adapted(directory) else directory
    return load_tokenizer(place, chat=chat)


def save_policy(directory: Path, policy: Policy, tokenizer: Tokenizer) -> None:
    """Write the trunk as `save_trunk` does, and the value head (and critic) beside it."""
    save_trunk(directory, policy.model, tokenizer)
    head = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items() if not k.startswith("model.")}
    save_tensors(head, directory / VALUE_HEAD)


def load_policy(directory: Path, sampler: Sampler, device: torch.device = CPU) -> Policy:
    """Read a policy written by `save_policy`."""
    head = {"value_scale": torch.ones(())} | read_tensors(directory / VALUE_HEAD)  # older models know no scale
    trunk = read_trunk(directory, device)
    policy = Policy(trunk, sampler, separate_critic=any(name.startswith("critic.") for name in head))
    restore(policy, head | trunk_tensors(trunk), directory / VALUE_HEAD)
    return policy


def save_scorer(directory: Path, scorer: Scorer, tokenizer: Tokenizer) -> None:
    """Write a reward model in the layout of LlamaForSequenceClassification (one label, `score.weight`)."""
    facts = {"mean": scorer.mean.item(), "std": scorer.std.item(), "tokenizer": tokenizer.hash}
    head = {"score.weight": scorer.score.weight.detach().cpu().contiguous()}
    if isinstance(scorer.model, Adapted):
        save_adapter(directory, scorer.model, head)
        write_json(directory / SCORE, facts)
        return
    save_transformer(directory, scorer.model, tokenizer, head)
    config = read_json(directory / "config.json")
    family = config["architectures"][0].removesuffix("ForCausalLM")
    config |= {"architectures": [f"{family}ForSequenceClassification"], "num_labels": 1, "id2label": {"0": "score"}}
    write_json(directory / "config.json", config | {"label2id": {"score": 0}})
    write_json(directory / SCORE, facts)


def load_scorer(directory: Path, device: torch.device = CPU) -> Scorer:
    """Read a reward model written by `save_scorer`."""
    trunk: Trunk
    if is_adapted(directory):
        trunk, head = load_adapted(directory, device, heads_of=("score.weight",))
    else:
        trunk, head = load_trunk(directory, torch.float32, device, lm_head=False)
    scorer = Scorer(trunk)
    facts = read_json(directory / SCORE)
    try:
        moments = {name: torch.tensor(float(facts[name])) for name in ("mean", "std")}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("no mean and standard deviation", str(directory / SCORE), "train it again") from None
    restore(scorer, head | moments | trunk_tensors(trunk), directory / WEIGHTS)
    return scorer


def trunk_tensors(trunk: Trunk) -> dict[str, Tensor]:
    """Tensors of a trunk by their names in a policy or a reward model."""
    return {f"model.{name}": tensor for name, tensor in trunk.state_dict().items()}
