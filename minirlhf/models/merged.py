"""A decoding step of a small transformer by half as many operations.

A step of a small model is a hundred operations on one token a row, each of them done before the next one is prepared.
So projections of the same input stand in one matrix here, queries and keys are rotated together, and a product adds its
result to the residual stream itself. The numbers are those of `Transformer.forward` but for rounding.

Not here: models with biases, normed queries and keys, adapters, packed weights or hooks, attention by a kernel, and
large models, for which the copies would cost more than they save: `decoding_model` gives those back as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minirlhf.models.attention import KVCache, by_products, hidden_slots, rotate
from minirlhf.models.families import TransformerConfig
from minirlhf.models.lora import Trunk
from minirlhf.models.transformer import Transformer

MOST_MERGED = 1 << 22  # elements of merged weights, 16 MiB in float32: with more, products take the time


def decoding_model(model: Trunk, cache: KVCache) -> Callable[[Tensor, KVCache], Tensor]:
    """Choose who takes a step, (ids (B,1), cache) -> hidden (B,1,W): a `MergedModel` if it can be, else the model."""
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())  # they want to be called
    if type(model) is Transformer and not (hooked or model.in_bfloat16) and merges(model.config):
        _, rows, _, slots, _ = cache.keys.shape
        pairs = rows * model.config.num_attention_heads * slots
        first: Any = model.layers[0]
        plain = isinstance(first.self_attn.q_proj, nn.Linear)  # not packed
        if plain and by_products(model.embed_tokens.weight, pairs):
            return MergedModel(model)
    return lambda ids, cache: model(ids, cache=cache)


def merges(config: TransformerConfig) -> bool:
    """True for a model that `MergedModel` computes, of a size at which it is worth the copies."""
    more = config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm
    return not more and merged_elements(config) <= MOST_MERGED


def merged_elements(config: TransformerConfig) -> int:
    """Number of weights that a `MergedModel` copies: queries, keys, values, gate and up of all layers."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    width = heads * config.head_size + 2 * config.intermediate_size
    return config.num_hidden_layers * width * config.hidden_size


class MergedModel:
    """A transformer whose weights stand as a decoding step wants them; they do not follow those of the model."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.blocks: list[Any] = list(model.layers)
        attentions, mlps = [block.self_attn for block in self.blocks], [block.mlp for block in self.blocks]
        # Of each layer: ((H + 2 Hkv) D, W) and (2F, W).
        self.of_heads = [torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]) for a in attentions]
        self.of_mlp = [torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) for mlp in mlps]

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """One more token a row, ids (B,1) -> hidden (B,1,W)."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        cos, sin, visible = cache.step()
        x: Tensor = self.model.embed_tokens(ids[:, 0])  # (B,W)
        hidden = hidden_slots(visible, self.config, x.dtype)
        for layer, block in enumerate(self.blocks):
            read = F.linear(block.input_layernorm(x), self.of_heads[layer]).view(len(x), 1, heads + 2 * kv_heads, -1)
            turned, v = rotate(read[:, :, : heads + kv_heads], cos, sin), read[:, :, heads + kv_heads :]
            q, k = turned[:, :, :heads], turned[:, :, heads:]
            seen = cache.attend(layer, q, k, v, visible, hidden).view(len(x), -1)
            x = torch.addmm(x, seen, block.self_attn.o_proj.weight.t())
            gate, up = F.linear(block.post_attention_layernorm(x), self.of_mlp[layer]).chunk(2, dim=-1)  # (B,F) each
            x = torch.addmm(x, F.silu(gate) * up, block.mlp.down_proj.weight.t())
        last: Tensor = self.model.norm(x)
        return last.unsqueeze(1)
