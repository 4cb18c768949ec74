"""The pretrained base: made once for a corpus, tokenizer, model and pretraining settings, then reused.

    BASES/HASH/  config.json  model.safetensors  tokenizer.json  tokenizer_config.json  base.json  MANIFEST.json

HASH is over everything that decides the weights. It is built under a lock, so that two runs which start together
pretrain once; a directory that fails its manifest is built again.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from minirlhf.config import Config
from minirlhf.data import Documents
from minirlhf.errors import CheckpointError
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.pretrain import PretrainState, heldout_loss, train, windows
from minirlhf.store.files import complete_directory, verify, write_json
from minirlhf.store.lock import locked
from minirlhf.store.model import load_transformer, read_json, save_transformer
from minirlhf.streams import generator
from minirlhf.text.corpus import corpus_hash
from minirlhf.text.tokenizer import Tokenizer, train_tokenizer

FORMAT = 1  # raise when the same settings would give other weights

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Base:
    """A pretrained model on disk: its directory, trunk, tokenizer, and base.json (held-out loss, tokens, seconds)."""

    directory: Path
    trunk: Transformer
    tokenizer: Tokenizer
    facts: dict[str, Any]


def base_key(config: Config) -> dict[str, Any]:
    """Everything that decides the weights of the base."""
    corpus = config.corpus
    return {
        "format": FORMAT,
        "corpus": {
            "sha256": corpus_hash(corpus.text),
            "heldout_share": corpus.heldout_share,
            "errors": corpus.errors,
        },
        "tokenizer": config.tokenizer.model_dump(),
        "model": config.model.model_dump(exclude={"separate_critic"}),
        "pretrain": config.pretrain.model_dump(),
    }


def prepare_base(config: Config, documents: Documents, device: torch.device, emit: Emit) -> Base:
    """Find the base of this configuration, or pretrain it."""
    key = base_key(config)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    directory = Path(config.run.bases) / name
    with locked(directory.with_name(f".{name}.lock"), wait=True):
        if directory.exists():
            try:
                verify(directory)
                base = load_base(directory, device)
                emit({"event": "stage", "stage": "base", "reused": True, "directory": str(directory), **base.facts})
                return base
            except CheckpointError as fault:
                emit({"event": "warning", "message": f"the base is built again: {fault}"})
        build_base(directory, key, config, documents, device, emit)
    return load_base(directory, device)


def load_base(directory: Path, device: torch.device) -> Base:
    """Read a base that `build_base` has made."""
    trunk = load_transformer(directory).to(device)
    return Base(directory, trunk, Tokenizer.load(directory), read_json(directory / "base.json"))


def build_base(
    directory: Path, key: dict[str, Any], config: Config, documents: Documents, device: torch.device, emit: Emit
) -> None:
    """Train the tokenizer and the transformer; the directory appears when it is complete."""
    started = perf_counter()
    emit({"event": "stage", "stage": "pretrain", "documents": len(documents.train), "steps": config.pretrain.steps})
    texts = [document.text for document in documents.train]
    tokenizer = train_tokenizer(texts, config.tokenizer.vocab_size)
    data = windows(texts, tokenizer, config.pretrain.sequence_length)
    heldout = windows([d.text for d in documents.heldout], tokenizer, config.pretrain.sequence_length)
    model = Transformer(transformer_config(config, tokenizer))
    model.initialise(generator(config.pretrain.seed, "init", 0)).to(device)
    state = PretrainState.start(model, config.pretrain)
    every = max(1, config.pretrain.steps // 20)
    for step, metrics in train(state, data, tokenizer, config.pretrain, device):
        if step % every == 0 or step == config.pretrain.steps:
            emit({"event": "pretrain", "step": step, "steps": config.pretrain.steps, **metrics})
    seconds = perf_counter() - started
    facts = {
        "heldout_loss": heldout_loss(model, heldout, tokenizer, config.pretrain.batch_size, device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": state.tokens,
        "seconds": seconds,
        "tokens_per_s": state.tokens / seconds,
    }
    with complete_directory(directory) as temporary:
        save_transformer(temporary, model, tokenizer)
        write_json(temporary / "base.json", {**facts, "key": key})
    emit({"event": "stage", "stage": "base", "reused": False, "directory": str(directory), **facts})


def transformer_config(config: Config, tokenizer: Tokenizer) -> TransformerConfig:
    """The model section under Hugging Face's names; the vocabulary is the tokenizer's own size."""
    model = config.model
    return TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.max_positions,
        rope_theta=model.rope_theta,
        rms_norm_eps=model.norm_eps,
    )
