"""LoRA: a frozen backbone, and small adapters that learn beside it (Hu et al., 2106.09685).

Every chosen projection W x becomes W x + (alpha / rank) B A x, with A (rank, inputs) drawn at random and B (outputs,
rank) 0 at first, so that an adapter begins as the backbone itself, to the bit. One backbone serves in several roles at
the same time: the policy is one adapter, the critic or a reward model another, the reference is none at all.

`Adapted` goes wherever a transformer goes. Its backbone is none of its submodules, so that parameters, optimisers and
checkpoints hold the adapter alone. Beside a bfloat16 backbone adapters learn in float32, and are rounded where they are
used. SFT and reward models may learn with dropout (`dropping`); PPO does not, since sampling and scoring must agree.

Not here: PEFT's file layout (store/adapters.py).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from minirlhf.errors import UsageError
from minirlhf.models.attention import KVCache
from minirlhf.models.families import TransformerConfig
from minirlhf.models.packing import Packing
from minirlhf.models.quantise import is_quantised
from minirlhf.models.transformer import LayerProject, Transformer, plain

PARTS: Final = {  # projection -> the part of a block that it belongs to
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip


class LowRank(nn.Module):
    """Share of one projection: scale B A x, with A (rank, inputs) and B (outputs, rank)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale
        self._cast: tuple[tuple[Any, ...], Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (...,inputs) -> (...,outputs), in the dtype of x."""
        a, b = (self.A, self.B) if x.dtype == self.A.dtype else self._in(x.dtype)
        return nn.functional.linear(nn.functional.linear(x, a) * self.scale, b)

    def _in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B in the dtype of the backbone.

        Both are rounded before the products, with and without gradients: sampling and learning then compute the same,
        and x is not cast. Without gradients they are kept until they change: a decoding step has no time for this.
        """
        if torch.is_grad_enabled():
            return self.A.to(dtype), self.B.to(dtype)
        key = (dtype, self.A.data_ptr(), self.B.data_ptr(), self.A._version, self.B._version)
        if self._cast is None or self._cast[0] != key:
            self._cast = (key, self.A.detach().to(dtype), self.B.detach().to(dtype))
        return self._cast[1], self._cast[2]

    def product(self) -> Tensor:
        """scale B A (outputs, inputs): what the projection's weight gains if the adapter is merged into it."""
        return (self.B @ self.A) * self.scale


class Adapter(nn.Module):
    """Low-rank shares of the chosen projections of all blocks: layers.N.PROJECTION.{A,B}.

    dropout: None, or the share of inputs to drop and the generator of what is dropped, set by `dropping`.
    """

    def __init__(self, config: TransformerConfig, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.rank, self.alpha, self.targets = rank, alpha, targets
        self.dropout: tuple[float, torch.Generator] | None = None
        sizes = projection_sizes(config)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: LowRank(*sizes[name], rank, alpha / rank) for name in targets})
            for _ in range(config.num_hidden_layers)
        )

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "Adapter":
        """Draw every A with variance 1 / inputs, which keeps the size of x; B stays 0. Returns self."""
        for low in self.modules():
            if isinstance(low, LowRank):
                low.A.copy_(torch.randn(low.A.shape, generator=generator) * low.A.shape[1] ** -0.5)
        return self

    def for_a_pass(self) -> LayerProject:
        """`project` for one forward pass, with what that pass drops."""
        if self.dropout is None:
            return self.project
        # One draw a pass: a block that is computed again for the backward pass drops the same inputs.
        rate, generator = self.dropout
        return partial(self.project, drop=(rate, int(torch.randint(1 << 62, (), generator=generator))))

    def project(
        self, layer: int, linear: nn.Linear, name: str, x: Tensor, drop: tuple[float, int] | None = None
    ) -> Tensor:
        """Apply a projection of a block, and this adapter's share of it; drop: share of its inputs, and a seed."""
        out = plain(linear, name, x)
        if name not in self.targets:
            return out
        if drop is not None:
            x = dropped(x, drop[0], drop[1] + layer * len(PARTS) + list(PARTS).index(name))
        low: Tensor = self.layers[layer][name](x)  # type: ignore[index]  # a ModuleList holds what it was given
        return out + low


@contextmanager
def dropping(model: nn.Module, rate: float, generator: torch.Generator) -> Iterator[None]:
    """Let every adapter in `model` drop a share `rate` of its inputs in passes that begin in the block.

    The backbone drops nothing. The passes draw from `generator`, one after another.
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    for adapter in adapters:
        adapter.dropout = (rate, generator) if rate else None
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.dropout = None


def dropped(x: Tensor, rate: float, seed: int) -> Tensor:
    """x with a share `rate` of its elements set to 0 and the others divided by 1 - rate, so that its mean stays."""
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.empty_like(x).bernoulli_(1 - rate, generator=generator)
    return x * kept / (1 - rate)


def projection_sizes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each projection of a block."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    return {
        "q_proj": (width, queries), "k_proj": (width, keys), "v_proj": (width, keys), "o_proj": (queries, width),
        "gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width),
    }  # fmt: skip


class Adapted(nn.Module):
    """Frozen backbone with an adapter: has the calls and attributes of a Transformer.

    A deep copy copies the adapter and shares the backbone. Device and dtype of the backbone are its own: `to` moves the
    adapter alone.
    """

    def __init__(self, backbone: Transformer, adapter: Adapter) -> None:
        super().__init__()
        # Behind nn.Module's back, in a tuple: the backbone is neither trained nor saved with the adapter.
        self._frozen = (backbone,)
        self.adapter = adapter

    @property
    def backbone(self) -> Transformer:
        return self._frozen[0]

    @property
    def config(self) -> TransformerConfig:
        return self.backbone.config

    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.backbone.embed_tokens

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (...,W) -> logits (...,V)."""
        return self.backbone.logits(hidden)

    def forward(self, ids: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """ids (B,T) -> hidden (B,T,W), as Transformer.forward."""
        out: Tensor = self.backbone(ids, mask, cache, self.adapter.for_a_pass())
        return out

    def packed(self, ids: Tensor, packing: Packing) -> Tensor:
        """ids (N,) -> hidden (N,W), as Transformer.packed."""
        return self.backbone.packed(ids, packing, self.adapter.for_a_pass())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapted":
        return Adapted(self.backbone, copy.deepcopy(self.adapter, memo))

    @torch.no_grad()
    def merged(self) -> Transformer:
        """A transformer of its own whose weights hold the adapter: W + scale B A, in the backbone's dtype.

        UsageError if those are packed.
        """
        if is_quantised(self.backbone):
            todo = "load its base without quantise, and merge the adapter into that"
            raise UsageError("an adapter cannot be merged into packed weights, which would round it", todo=todo)
        model = copy.deepcopy(self.backbone)
        for layer, shares in enumerate(self.adapter.layers):
            for name, low in shares.items():  # type: ignore[operator]
                weight = model.get_submodule(f"layers.{layer}.{PARTS[name]}.{name}").weight
                weight.copy_((weight.to(low.A.dtype) + low.product()).to(weight.dtype))  # type: ignore[operator]
        return model


Trunk = Transformer | Adapted


def backbone_of(trunk: Trunk) -> Transformer:
    """The transformer whose weights a trunk reads: itself, or the frozen one behind an adapter."""
    return trunk.backbone if isinstance(trunk, Adapted) else trunk


def learner(trunk: Trunk, adapter: Adapter | None) -> Trunk:
    """A trunk to train that begins as this one: a copy, or, with an adapter, the backbone itself beside it.

    A trunk that has an adapter goes on with a copy of its own.
    """
    if isinstance(trunk, Adapted):
        return copy.deepcopy(trunk).requires_grad_(True)  # the adapter's parameters; the backbone is none of its parts
    return copy.deepcopy(trunk) if adapter is None else Adapted(trunk, adapter)


def head_options(trunk: Trunk) -> dict[str, Any]:
    """Device of a trunk, and the dtype of a head on it: that of its weights, or float32 where they have less."""
    weight = trunk.embed_tokens.weight
    return {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
