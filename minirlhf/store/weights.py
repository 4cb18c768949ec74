"""Models on disk in Hugging Face's layout: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

Weights may lie in several files (model.safetensors.index.json says which), in float32, bfloat16 or float16. Not here:
adapters (adapters.py), policies and reward models with their heads (models.py), optimisers and other state (state.py),
and pickle anywhere: safetensors and JSON hold no code.
"""

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from minirlhf.errors import CheckpointError
from minirlhf.models.families import config_from_hf, config_to_hf
from minirlhf.models.transformer import Transformer
from minirlhf.signals import deferred
from minirlhf.store.files import read_json, write_json
from minirlhf.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files: {"weight_map": {tensor: file}}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of weights on disk
HEADERS = {  # names of dtypes in safetensors
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
COMPLETE = "give a complete model of this config.json"
COMPUTED = ("rotary_emb.inv_freq",)  # ends of names: buffers that some files hold, and every decoder computes


def save_transformer(
    directory: Path, trunk: Transformer, tokenizer: Tokenizer, head: dict[str, Tensor] | None = None
) -> None:
    """Write the trunk with its LM head (no `lm_head` key where it is tied), or another head in its place; and the
    tokenizer."""
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    own = tensors.pop("model.lm_head.weight", None)
    tensors |= head if head is not None else {} if own is None else {"lm_head.weight": own}
    save_tensors(tensors, directory / WEIGHTS)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id if len(tokenizer.stops) == 1 else list(tokenizer.stops),
        "pad_token_id": tokenizer.pad_id,
    }
    dtype = str(trunk.embed_tokens.weight.dtype).removeprefix("torch.")
    write_json(directory / "config.json", config_to_hf(trunk.config) | ids | {"dtype": dtype})
    tokenizer.save(directory)


def load_transformer(
    directory: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Transformer:
    """Read a trunk in a dtype; InputError for a bad config.json, CheckpointError for tensors that do not fit it."""
    trunk, others = load_trunk(directory, dtype, device)
    refuse_foreign(others, directory)
    return trunk


def check_weights(directory: Path) -> None:
    """Refuse what `load_transformer` would, as far as names, shapes and dtypes show it: no weight is read."""
    where = directory / "config.json"
    config = config_from_hf(read_json(where), str(where))
    own, found, others = Transformer(config, "meta").state_dict(), set[str](), list[str]()
    for key, stored, file in stored_headers(directory):
        name = key.removeprefix("model.")
        if name.endswith(COMPUTED) or (name == "lm_head.weight" and config.tied):
            continue
        if name not in own:
            others.append(key)
            continue
        check_kind(name, stored.shape, stored.dtype, own[name].shape, file)
        found.add(name)
    refuse_missing(own.keys() - found, directory)
    refuse_foreign(others, directory)


def refuse_missing(names: Collection[str], directory: Path) -> None:
    """Refuse a model that lacks tensors of its config.json (CheckpointError names one)."""
    if names:
        what = f"{len(names)} tensors are missing, such as {min(names)}"
        raise CheckpointError(what, str(directory), COMPLETE)


def refuse_foreign(names: Collection[str], directory: Path) -> None:
    """Refuse a model with tensors that its decoder does not have (CheckpointError names one)."""
    if names:
        what = f"{len(names)} tensors are none of this decoder's, such as {min(names)}"
        raise CheckpointError(what, str(directory / WEIGHTS), "give a complete model of its config.json")


def load_trunk(
    directory: Path, dtype: torch.dtype, device: torch.device | str = "cpu", *, lm_head: bool = True
) -> tuple[Transformer, dict[str, Tensor]]:
    """Read (trunk, the tensors that are none of its: a head's), one tensor after another, so that no copy is made.

    lm_head: False leaves out an LM head of the model's own, which a reward model has no use for.
    """
    where = directory / "config.json"
    config = config_from_hf(read_json(where), str(where))
    config = config if lm_head else replace(config, tied=True)
    trunk = Transformer(config, "meta")  # shapes without memory
    own, found, others, head = trunk.state_dict(), dict[str, Tensor](), dict[str, Tensor](), None
    for key, tensor, file in stored_tensors(directory):
        name = key.removeprefix("model.")
        if name == "lm_head.weight" and config.tied:
            head = tensor.to(dtype) if lm_head else None
        if name.endswith(COMPUTED) or (name == "lm_head.weight" and config.tied):
            continue
        if name not in own:
            others[key] = tensor.clone()
            continue
        check_stored(name, tensor, own[name].shape, file)
        # A copy, not a view of the file, which somebody may write to while the model is in use.
        found[name] = tensor.to(device, dtype, copy=True)
    refuse_missing(own.keys() - found.keys(), directory)
    if head is not None and not torch.equal(head, found["embed_tokens.weight"].cpu()):
        what = "lm_head.weight is another matrix than the embedding, to which config.json ties it"
        todo = "set tie_word_embeddings to false there, or take the tensor out"
        raise CheckpointError(what, str(directory), todo)
    trunk.load_state_dict(found, assign=True)
    return trunk.requires_grad_(True), others


def stored_tensors(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """Yield (name, tensor, file) of a directory's weights in the order of the files; CheckpointError for a fault."""
    return _stored(directory, lambda opened, name: opened.get_tensor(name))


def stored_headers(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """Yield what `stored_tensors` does with tensors that have a shape and a dtype, and no memory (device meta)."""

    def header(opened: Any, name: str) -> Tensor:
        about = opened.get_slice(name)
        return torch.empty(about.get_shape(), dtype=HEADERS[about.get_dtype()], device="meta")

    return _stored(directory, header)


def _stored(directory: Path, read: Callable[[Any, str], Tensor]) -> Iterator[tuple[str, Tensor, Path]]:
    """Yield (name, `read` of the opened file and the name, file) for each tensor of a directory's weights."""
    for file in weight_files(directory):
        try:
            str(file).encode()
        except UnicodeEncodeError:  # the library opens no names that are not UTF-8
            yield from ((name, tensor, file) for name, tensor in read_tensors(file).items())
            continue
        try:
            with deferred(), safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                    yield name, read(opened, name), file
        except (OSError, SafetensorError, ValueError, KeyError) as fault:
            todo = "download or save it again"
            raise CheckpointError(f"not a readable safetensors file ({fault})", str(file), todo) from None


def weight_files(directory: Path) -> list[Path]:
    """Files with the weights of a model directory: one, or those that its index names (CheckpointError if one lacks).

    Weights in other formats (pytorch_model.bin is a pickle, which can hold code) are not read.
    """
    index = directory / INDEX
    if (directory / WEIGHTS).exists() or not index.is_file():
        return [directory / WEIGHTS]
    named = read_json(index, CheckpointError).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError("weight_map does not name files beside it", str(index), "download it again")
    files = [directory / name for name in sorted(names)]
    for file in files:
        if not os.path.isfile(file):  # False, too, for a name that is too long
            what = str(file)[:300]
            raise CheckpointError("a file of the weights is missing", what, f"{INDEX} names it: download it")
    return files


def check_stored(name: str, tensor: Tensor, shape: torch.Size, file: Path) -> None:
    """Refuse a tensor of another shape, that is no floating-point number, or not finite (CheckpointError)."""
    check_kind(name, tensor.shape, tensor.dtype, shape, file)
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{name} is not finite", str(file), COMPLETE)


def check_kind(name: str, found: torch.Size, dtype: torch.dtype, shape: torch.Size, file: Path) -> None:
    """Refuse a tensor of another shape, or that is no floating-point number (CheckpointError)."""
    if found != shape:
        what = f"{name} has shape {tuple(found)}, expected {tuple(shape)}"
        raise CheckpointError(what, str(file), COMPLETE)
    if dtype not in DTYPES:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
        raise CheckpointError(f"{name} is {dtype}, expected one of {kinds}", str(file), COMPLETE)


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
