"""Adapters on disk in PEFT's layout, and the frozen backbones that they stand beside.

    adapter_config.json  adapter_model.safetensors     PEFT's names; PEFT opens them, and its own adapters are read here
    backbone.json        the backbone: its directory, the SHA-256 of its files, and how it is used: dtype, quantise

A backbone is never copied: it is found again by its directory, or, where it has moved, by its hash once somebody has
looked at it in its new place; and refused if its files have changed. Whoever asks for
one that is loaded already gets the same frozen module, so that policy, reference, critic and reward model share it.
Not here: the computation (models/lora.py), and heads (models.py).
"""

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from minirlhf.errors import CheckpointError, InputError
from minirlhf.models.families import TransformerConfig
from minirlhf.models.lora import PARTS, Adapted, Adapter
from minirlhf.models.quantise import METHODS, Method, quantise_projections
from minirlhf.models.transformer import Transformer
from minirlhf.store.files import read_json, sha256, write_json
from minirlhf.store.weights import INDEX, load_transformer, read_tensors, save_tensors, weight_files

ADAPTER: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
POINTER: Final = "backbone.json"
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Files beside the weights that decide what a model computes from a text.
BESIDE: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
SOME_LAYERS: Final = (
    "adapters on some layers are not computed here: give one on all of them, or the base that it was trained on"
)
MOST_RANK: Final = 4096
TENSOR: Final = re.compile(r"base_model\.model\.(?:model\.)?layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight")
# Settings of PEFT that change what an adapter computes: name -> the values under which it is W x + alpha/r B A x.
PLAIN: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),  # others change the base as well
    "alora_invocation_tokens": (None, []),
    "fan_in_fan_out": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "modules_to_save": (None, [], ["score"], ["classifier", "score"]),
}


@dataclass(frozen=True)
class Source:
    """Origin of a backbone: its directory, the SHA-256 of its files, and the dtype and packing in which it is used."""

    path: str
    sha256: str
    dtype: str
    quantise: Method | None = None


_LOADED = WeakValueDictionary[tuple[Source, str], Transformer]()
# SHA-256 -> where this process has last seen such a model: a base that has moved is found there.
_PLACES = dict[str, Path]()


def model_hash(directory: Path) -> str:
    """SHA-256 over the names and contents of a model's weights, config and tokenizer; CheckpointError if one lacks.

    The place is remembered, so that adapters of this base are read beside it wherever their pointer leads (`pointed`).
    """
    try:
        found = [(file.name, file.resolve(), file.stat()) for file in model_files(directory)]
        named = [(name, _file_hash(file, about.st_mtime_ns, about.st_size)) for name, file, about in found]
    except OSError as fault:
        todo = "give a directory with config.json and safetensors weights"
        raise CheckpointError(f"no weights ({fault.strerror})", str(fault.filename), todo) from None
    digest = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in named).encode()).hexdigest()
    _PLACES[digest] = directory.absolute()
    return digest


def model_files(directory: Path) -> list[Path]:
    """Files of a model: its weights, the index of several, config and tokenizer; or those of an adapter."""
    if (directory / ADAPTER_CONFIG).is_file():
        return [directory / ADAPTER, directory / ADAPTER_CONFIG]
    beside = [directory / name for name in (INDEX, *BESIDE)]
    return [*weight_files(directory), *(file for file in beside if file.is_file())]


@lru_cache(maxsize=256)
def _file_hash(file: Path, changed: int, size: int) -> str:
    """SHA-256 of a file, computed once for each time of change and size: weights take seconds to read."""
    return sha256(file)


def load_backbone(directory: Path, dtype: str, device: torch.device, quantise: Method | None = None) -> Transformer:
    """The frozen transformer of a directory; the same module for everybody who asks while it is in use.

    quantise: how its projections are packed, in memory alone: on disk they stay as they are.
    """
    source = Source(str(directory.absolute()), model_hash(directory), dtype, quantise)
    device = torch.empty(0, device=device).device  # cuda and cuda:0 are one
    found = _LOADED.get((source, str(device)))
    if found is None:
        if quantise is None:
            found = load_transformer(directory, DTYPES[dtype], device)
        else:  # read beside the device, which then never holds the plain weights
            found = quantise_projections(load_transformer(directory, DTYPES[dtype]), quantise, device)
        found.requires_grad_(False).eval()
        _LOADED[source, str(device)] = found
    return found


def source_of(backbone: Transformer) -> Source:
    """Origin of a backbone that `load_backbone` gave."""
    return next(source for (source, _), module in _LOADED.items() if module is backbone)


def save_adapter(directory: Path, trunk: Adapted, heads: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter and the pointer to its backbone; heads: those of a head by name, score.weight."""
    adapter, path = trunk.adapter, source_of(trunk.backbone).path
    named = {
        f"base_model.model.model.layers.{layer}.{PARTS[name]}.{name}.lora_{part}.weight": getattr(low, part)
        for layer, shares in enumerate(adapter.layers)
        for name, low in shares.items()  # type: ignore[operator]  # a ModuleList holds what it was given
        for part in "AB"
    }
    named |= {f"base_model.model.{name}": tensor for name, tensor in (heads or {}).items()}
    save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, directory / ADAPTER)
    config = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if heads else "CAUSAL_LM", "base_model_name_or_path": path,
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": 0.0, "target_modules": list(adapter.targets),
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "modules_to_save": ["classifier", "score"] if heads else None,
    }  # fmt: skip
    write_json(directory / ADAPTER_CONFIG, config)
    save_pointer(directory, trunk.backbone)


def save_pointer(directory: Path, backbone: Transformer) -> None:
    """Write backbone.json: the origin of a backbone that `load_backbone` gave."""
    write_json(directory / POINTER, asdict(source_of(backbone)))


def load_adapter(
    directory: Path, config: TransformerConfig, heads_of: tuple[str, ...] = ()
) -> tuple[Adapter, dict[str, Tensor]]:
    """Read an adapter of a decoder of this config, and the tensors of heads (their names: heads_of) beside it.

    InputError for settings that compute something else, CheckpointError for tensors that do not fit the backbone.
    """
    rank, alpha = adapter_scale(directory)
    shares, heads = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in read_tensors(directory / ADAPTER).items():
        part = TENSOR.fullmatch(name)
        if part is None:
            heads[name.removeprefix("base_model.model.")] = tensor
            if not heads.keys() <= set(heads_of):
                what = f"the adapter changes {sorted(heads)[0]}, which is not computed here"
                raise InputError(what, str(directory / ADAPTER), "give one of the projections alone")
        else:
            shares[f"layers.{part[1]}.{part[2]}.{part[3]}"] = tensor.float()
    present = {name.split(".")[2] for name in shares}
    adapter = Adapter(config, rank, alpha, tuple(name for name in PARTS if name in present))
    _restore(adapter, shares, directory / ADAPTER)
    return adapter, heads


def adapter_scale(directory: Path) -> tuple[int, float]:
    """Rank and alpha of an adapter; InputError if there is none, or its settings compute something else."""
    where = directory / ADAPTER_CONFIG
    if not os.path.isfile(where):  # False, too, for a path that is too long
        raise InputError("there is no adapter", str(directory)[:300], f"give one with {ADAPTER_CONFIG}")
    settings = read_json(where)
    for name, values in PLAIN.items():
        if settings.get(name) not in values:
            what = f"unsupported {name} = {str(settings.get(name))[:60]!r}"
            todo = "only plain LoRA, W x + alpha/r B A x, is computed here"
            raise InputError(what, str(where), SOME_LAYERS if name == "layers_to_transform" else todo)
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        if not 1 <= rank <= MOST_RANK or rank != settings["r"]:
            raise ValueError(f"rank {settings['r']}")
    except (KeyError, TypeError, ValueError) as fault:
        raise InputError(f"no rank and alpha ({fault})", str(where), "give an adapter of PEFT or minirlhf") from None
    return rank, alpha


def _restore(adapter: Adapter, shares: dict[str, Tensor], where: Path) -> None:
    """Load an adapter's tensors if they are exactly its own and finite (CheckpointError)."""
    own, todo = adapter.state_dict(), "it belongs to another base, or is damaged: give the base it was trained on"
    whole, present = ({name.rpartition(".")[0] for name in names} for names in (own, shares))  # layers.N.PROJECTION
    if shares.keys() == {name for name in own if name.rpartition(".")[0] in present} and present < whole:
        raise CheckpointError(f"the adapter has nothing for {min(whole - present)}", str(where), SOME_LAYERS)
    if own.keys() != shares.keys() or not shares:
        what = f"the adapter's tensors are not those of this base: {sorted(own.keys() ^ shares.keys())[:2]}"
        raise CheckpointError(what, str(where), todo)
    for name, tensor in shares.items():
        if tensor.shape != own[name].shape:
            what = f"{name} has shape {tuple(tensor.shape)}, this base needs {tuple(own[name].shape)}"
            raise CheckpointError(what, str(where), todo)
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} is not finite", str(where), "save it again")
    adapter.load_state_dict(shares)


def is_adapted(directory: Path) -> bool:
    """True if a directory holds an adapter of ours, with a pointer to its backbone."""
    return (directory / POINTER).is_file() and (directory / ADAPTER_CONFIG).is_file()


def pointed(directory: Path) -> Source:
    """The backbone that a directory points to. A place where its files were seen by `model_hash` goes first.

    CheckpointError if it is in neither place, or its files are not those that the adapter was trained on.
    """
    saved = read_json(directory / POINTER, CheckpointError)
    try:
        packing = saved.get("quantise")  # older pointers know none
        source = Source(str(saved["path"]), str(saved["sha256"]), str(saved["dtype"]), packing)
        DTYPES[source.dtype]
        if packing not in (None, *METHODS):
            raise KeyError(f"quantise = {packing!r}")
    except KeyError as fault:
        raise CheckpointError(f"no pointer to a base ({fault})", str(directory / POINTER), "save it again") from None
    known = _PLACES.get(source.sha256)
    with suppress(CheckpointError):  # what was seen there may be gone since
        if known is not None and model_hash(known) == source.sha256:
            return replace(source, path=str(known))
    place, named = Path(source.path), f"{source.path[:200]}, {directory / POINTER}"
    if not os.path.isdir(place):  # False, too, for a path that is too long
        todo = "put it back, or give the place of the same files: --set model.path=DIR"
        raise CheckpointError("the base of this adapter is not there", named, todo)
    found = model_hash(place)
    if found != source.sha256:
        what = f"the base of this adapter has changed on disk: {found[:12]}, and it was {source.sha256[:12]}"
        todo = "put the old files back, or give their place: --set model.path=DIR"
        raise CheckpointError(what, named, todo)
    return replace(source, path=str(place.absolute()))


def load_adapted(
    directory: Path, device: torch.device, heads_of: tuple[str, ...] = ()
) -> tuple[Adapted, dict[str, Tensor]]:
    """Read an adapter beside the backbone that it points to, and the tensors of heads that were saved with it."""
    source = pointed(directory)
    backbone = load_backbone(Path(source.path), source.dtype, device, source.quantise)
    adapter, heads = load_adapter(directory, backbone.config, heads_of)
    return Adapted(backbone, adapter.to(device)), heads
