"""A tiny model of somebody else: the directory of a decoder with a tokenizer that minirlhf did not train."""

from pathlib import Path

import torch

from minirlhf.models.families import TransformerConfig, config_to_hf
from minirlhf.store.files import read_json, write_json
from minirlhf.store.weights import save_tensors
from minirlhf.text.foreign import load_tokenizer
from tests.helpers import small_trunk
from tests.text.foreign_files import FAMILIES

SPARE = 5  # ids of the model that its tokenizer does not know: vocabularies are padded


def own_model(folder: Path, tokenizer: str = "smollm", seed: int = 0, **own) -> Path:
    """Write a Llama of width 16 with the tokenizer of a family (foreign_files.py); own: fields of its config."""
    FAMILIES[tokenizer](folder)
    known = load_tokenizer(folder).vocab_size
    sizes = {
        "vocab_size": known + SPARE, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    trunk = small_trunk(seed, TransformerConfig(**sizes | own))
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in trunk.state_dict().items()}
    if trunk.lm_head is not None:
        tensors["lm_head.weight"] = tensors.pop("model.lm_head.weight")
    save_tensors(tensors, folder / "model.safetensors")
    present = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    write_json(folder / "config.json", config_to_hf(trunk.config) | {"dtype": "float32"} | present)
    return folder


def same_weights(one: Path, other: Path) -> bool:
    """True if two safetensors files hold the same tensors to the bit."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
