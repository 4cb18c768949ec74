"""Families of decoders that models/transformer.py computes, described by data: Llama (SmolLM2), Qwen2 and Qwen3.

A `TransformerConfig` holds the sizes and what else differs between them; `config_from_hf` makes one from a config.json,
and names what the decoder does not compute; `config_to_hf` writes it back under the same names. Not here: the
computation (transformer.py) and the tensors on disk (store/weights.py).

Sources: Llama 2302.13971 and 2407.21783 (its scaled rotation), Qwen2 2407.10671, Qwen3 2505.09388.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from minirlhf.errors import InputError


@dataclass(frozen=True)
class LlamaRope:
    """Scaling of the rotary frequencies for contexts longer than those of pretraining (`rope_type` = "llama3").

    Wavelengths (tokens a turn) above original / low are stretched by `factor`, those below original / high stay, and
    between the two the frequency is interpolated.
    """

    factor: float
    low: float
    high: float
    original: int  # positions of the pretraining

    def scaled(self, frequencies: Tensor) -> Tensor:
        """Frequencies (D/2,) in radians a token -> the same, scaled."""
        turns = self.original * frequencies / (2 * math.pi)  # within the original context
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)  # 0: stretched, 1: as it is
        return frequencies * (share + (1 - share) / self.factor)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the decoder, under the names of Hugging Face's LlamaConfig, and what its family adds to it.

    head_dim None = hidden_size / num_attention_heads. tied: the LM head is the embedding. qkv_bias, o_bias, mlp_bias:
    projections with a bias. qk_norm: RMSNorm of each head's queries and keys, before the rotation.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    family: str = "llama"
    head_dim: int | None = None
    rope_scaling: LlamaRope | None = None
    tied: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def rotary_frequencies(self, device: torch.device) -> Tensor:
        """Rotary frequencies theta^(-2i/D), i < D/2, scaled where the family does: (D/2,) radians a token, float64."""
        exponent = torch.arange(0, self.head_size, 2, device=device, dtype=torch.float64) / self.head_size
        frequencies = self.rope_theta**-exponent
        return frequencies if self.rope_scaling is None else self.rope_scaling.scaled(frequencies)


NAMES: Final = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}  # model_type -> prefix of the class there
MOST, MOST_LAYERS = 1 << 30, 1 << 12  # of a size: larger ones are no model's, and would only be built for minutes
FLAGS: Final = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
FAMILIES: Final = "Llama, SmolLM2, Qwen2, Qwen2.5 and Qwen3"


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The content of config.json (read by transformers 4 and 5)."""
    rope = config.rope_scaling
    scaling = {} if rope is None else {
        "rope_scaling": {
            "rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low, "high_freq_factor": rope.high,
            "original_max_position_embeddings": rope.original,
        }
    }  # fmt: skip
    biases = {} if config.family == "qwen2" else {"attention_bias": config.o_bias}  # Qwen2's are fixed
    biases |= {"mlp_bias": config.mlp_bias} if config.family == "llama" else {}
    return {
        "architectures": [f"{NAMES[config.family]}ForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        **scaling,
        "hidden_act": "silu",
        **biases,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.hidden_size**-0.5,
    }


def config_from_hf(config: dict[str, Any], where: str) -> TransformerConfig:
    """Read a config.json from `where`. Raises InputError that names what this decoder does not compute."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in NAMES:
        raise InputError(f"unsupported model_type = {family!r}", where, f"give a model of these families: {FAMILIES}")
    # transformers 5 writes rope_parameters, with theta in it; 4 writes rope_scaling, with theta beside it.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise InputError(
            f"unsupported rope_parameters = {str(rope)[:60]!r}", where, "one rotation for all layers is read"
        )
    for name in FLAGS:
        if not isinstance(config.get(name) or False, bool):
            raise InputError(f"{name} = {str(config[name])[:40]!r} is neither true nor false", where, "mend it")
    _refuse_others(config, rope, where)
    attention, tied = bool(config.get("attention_bias", False)), bool(config.get("tie_word_embeddings", False))
    try:
        read = TransformerConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            max_position_embeddings=config["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            family=family,
            head_dim=_own_head_size(config, 128 if family == "qwen3" else None),
            rope_scaling=_rope_scaling(rope),
            tied=tied,
            qkv_bias=family == "qwen2" or attention,
            o_bias=family != "qwen2" and attention,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
        )
    except KeyError as missing:
        raise InputError(f"key {missing} is missing", where, "give a complete config.json") from None
    except (TypeError, ValueError) as fault:
        raise InputError(f"a value is not a number ({fault})", where, "give a complete config.json") from None
    return _checked_sizes(read, where)


def _refuse_others(config: dict[str, Any], rope: dict[str, Any], where: str) -> None:
    """Raise InputError, with name and value, for a setting that this decoder does not compute."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    layers = config.get("layer_types") or []
    other = next((x for x in layers if x != "full_attention"), None) if isinstance(layers, list) else layers
    found = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "rope_type": (kind, "llama3" if kind == "llama3" else "default"),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0, 1.0),
        "use_sliding_window": (config.get("use_sliding_window") or False, False),
        "layer_types": (other, None),
        "num_experts": (config.get("num_experts") or config.get("num_local_experts") or 0, 0),
        "quantization_config": (config.get("quantization_config"), None),
    }
    for key, (value, supported) in found.items():
        if value != supported:
            todo = "this decoder does not compute it: give another model"
            if key == "quantization_config":
                todo = "weights are read plain (float32, bfloat16, float16): give the model from before quantising"
            raise InputError(f"unsupported {key} = {str(value)[:60]!r}", where, todo)


def _own_head_size(config: dict[str, Any], default: int | None) -> int | None:
    """head_dim of a config, or the family's default; None where it is what the heads make of the width."""
    size: int | None = config.get("head_dim") or default
    return None if size is None or size * config["num_attention_heads"] == config["hidden_size"] else size


def _rope_scaling(rope: dict[str, Any]) -> LlamaRope | None:
    if rope.get("rope_type", rope.get("type", "default")) != "llama3":
        return None
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, original = float(rope["factor"]), int(rope["original_max_position_embeddings"])
    if not (0 < low < high < math.inf and 0 < factor < math.inf and original > 0):
        raise ValueError(f"llama3 with factor {factor}, low {low}, high {high}, original {original}")
    return LlamaRope(factor, low, high, original)


def _checked_sizes(config: TransformerConfig, where: str) -> TransformerConfig:
    """Return the config, or raise InputError for sizes that no decoder can have."""
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "head_size",
    )  # fmt: skip
    for name in sizes:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= (MOST_LAYERS if name == "num_hidden_layers" else MOST):
            raise InputError(f"{name} = {str(value)[:40]} is no size", where, "give a complete config.json")
    for name in ("rope_theta", "rms_norm_eps"):
        value = getattr(config, name)
        if not 0 < value < math.inf:  # NaN is refused, too
            raise InputError(f"{name} = {value} is not above 0 and finite", where, "give a complete config.json")
    if config.num_attention_heads % config.num_key_value_heads:
        what = f"num_key_value_heads = {config.num_key_value_heads} does not divide {config.num_attention_heads} heads"
        raise InputError(what, where, "give a complete config.json")
    if config.head_size % 2:
        raise InputError(f"head_dim = {config.head_size} is odd", where, "rotary positions turn pairs of features")
    return config
