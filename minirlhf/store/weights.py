"""Models on disk in Hugging Face's Llama layout: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

The value head (and the separate critic, if there is one) has a file of its own, so that transformers reads the rest
without a warning about unexpected keys. Not here: optimisers and other state (state.py), and pickle anywhere:
safetensors and JSON hold no code.
"""

import errno
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from minirlhf.errors import CheckpointError
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.scorer import Scorer
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.signals import deferred
from minirlhf.store.files import read_json, write_json
from minirlhf.text.tokenizer import Tokenizer

VALUE_HEAD = "value_head.safetensors"
SCORE = "score.json"  # of a reward model: mean and std that normalise its scores, and its tokenizer's hash


def save_transformer(directory: Path, trunk: Transformer, tokenizer: Tokenizer) -> None:
    """Write the trunk with its tied LM head (no `lm_head` key) and its tokenizer."""
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    save_tensors(tensors, directory / "model.safetensors")
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id if len(tokenizer.stops) == 1 else list(tokenizer.stops),
        "pad_token_id": tokenizer.pad_id,
    }
    dtype = str(trunk.embed_tokens.weight.dtype).removeprefix("torch.")
    write_json(directory / "config.json", trunk.config.to_hf() | ids | {"dtype": dtype})
    tokenizer.save(directory)


def load_transformer(directory: Path) -> Transformer:
    """Read a trunk; InputError for a bad config.json, CheckpointError for tensors that do not fit it."""
    where = directory / "config.json"
    trunk = Transformer(TransformerConfig.from_hf(read_json(where), str(where)))
    tensors = read_tensors(directory / "model.safetensors")
    restore(trunk, {k.removeprefix("model."): v for k, v in tensors.items()}, directory / "model.safetensors")
    return trunk


def save_policy(directory: Path, policy: Policy, tokenizer: Tokenizer) -> None:
    """Write the trunk as `save_transformer` does, and the value head (and critic) beside it."""
    save_transformer(directory, policy.model, tokenizer)
    head = {k: v.detach().cpu().contiguous() for k, v in policy.state_dict().items() if not k.startswith("model.")}
    save_tensors(head, directory / VALUE_HEAD)


def load_policy(directory: Path, sampler: Sampler) -> Policy:
    """Read a policy written by `save_policy`."""
    head = {"value_scale": torch.ones(())} | read_tensors(directory / VALUE_HEAD)  # older models know no scale
    trunk = load_transformer(directory)
    policy = Policy(trunk, sampler, separate_critic=any(name.startswith("critic.") for name in head))
    state = head | {f"model.{name}": tensor for name, tensor in trunk.state_dict().items()}
    restore(policy, state, directory / VALUE_HEAD)
    return policy


def save_scorer(directory: Path, scorer: Scorer, tokenizer: Tokenizer) -> None:
    """Write a reward model in the layout of LlamaForSequenceClassification (one label, `score.weight`)."""
    save_transformer(directory, scorer.model, tokenizer)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in scorer.state_dict().items()}
    moments = {name: tensors.pop(name).item() for name in ("mean", "std")}
    save_tensors(tensors, directory / "model.safetensors")
    config = read_json(directory / "config.json")
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "id2label": {"0": "score"}}
    write_json(directory / "config.json", config | {"label2id": {"score": 0}})
    write_json(directory / SCORE, {**moments, "tokenizer": tokenizer.hash})


def load_scorer(directory: Path) -> Scorer:
    """Read a reward model written by `save_scorer`."""
    where = directory / "config.json"
    scorer = Scorer(Transformer(TransformerConfig.from_hf(read_json(where), str(where))))
    facts = read_json(directory / SCORE)
    try:
        moments = {name: torch.tensor(float(facts[name])) for name in ("mean", "std")}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("no mean and standard deviation", str(directory / SCORE), "train it again") from None
    file = directory / "model.safetensors"
    restore(scorer, read_tensors(file) | moments, file)
    return scorer


def restore(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load tensors into a module if they are exactly its own (CheckpointError)."""
    check_fits(module, tensors, where)
    module.load_state_dict(tensors)


def check_fits(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Compare tensors with those of a module: names, shapes, dtypes; all finite (CheckpointError)."""
    own = module.state_dict()
    todo = "give a complete model of this configuration"
    if own.keys() != tensors.keys():
        raise CheckpointError(f"tensors differ by {sorted(own.keys() ^ tensors.keys())[:4]}", str(where), todo)
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            raise CheckpointError(f"{name} has shape {shapes}", str(where), todo)
        if tensor.dtype != own[name].dtype:
            raise CheckpointError(f"{name} is {tensor.dtype}, expected {own[name].dtype}", str(where), todo)
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} is not finite", str(where), todo)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; OSError, not the library's own error, if the disk fails."""
    try:
        with deferred():
            save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as fault:
        code = re.search(r"os error (\d+)", str(fault))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file (CheckpointError if it is none)."""
    try:
        with deferred():
            try:
                str(path).encode()
            except UnicodeEncodeError:  # the library opens no names that are not UTF-8
                return load(path.read_bytes())
            return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as fault:
        raise CheckpointError(f"not a readable safetensors file ({fault})", str(path), "save it again") from None
