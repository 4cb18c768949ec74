"""A decoder-only transformer from scratch, Llama-shaped, in one file.

- RMSNorm before attention and MLP, rotary positions (RoPE, half-rotation layout), SwiGLU, grouped-query attention.
  Biases, a norm of queries and keys, an LM head of its own: as the family has them (families.py). Layout, parameter
  names and config keys are those of Hugging Face, so that a saved model opens there unchanged (and back).
- Two ways through the same blocks: `forward` for decoding (left-padded rows, a KV cache), `packed` for everything that
  learns or scores (the tokens of a batch end to end, no padding computed). A token's position counts real tokens only,
  so that both ways give a text the same numbers.
- Attention goes through torch's scaled_dot_product_attention: fast kernels are torch's business.
- The KV cache is allocated once, at its final size; a decoding step writes into it and reads the filled part.
- With `in_bfloat16` the matrix products and the attention of the blocks run in bfloat16; the weights, the residual
  stream, the norms and everything behind the blocks stay float32.
- `forward` returns hidden states. The LM head (V times wider) is applied by models/policy.py, in chunks.
- A block calls each projection through `project`, by which an adapter (lora.py) adds its share.

Not here: dropout (off in RLHF: sampling and scoring must agree), attention kernels, sampling.
Shapes: B rows, T tokens of this call, S slots (T and everything before), N tokens end to end, W width, H query heads,
Hkv key and value heads, D head size, L layers.
Sources: RMSNorm 1910.07467, norm before the block 2002.04745, RoPE 2104.09864, SwiGLU 2002.05202, GQA 2305.13245,
Llama 2302.13971.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirlhf.models.attention import (
    KVCache,
    attention,
    by_products,
    causal,
    hidden_slots,
    rotary_table,
    rotate,
    visible_slots,
    weighted,
)
from minirlhf.models.families import TransformerConfig
from minirlhf.models.packing import Packing
from minirlhf.models.products import product

# How a block applies one of its projections: (linear, its name, x) -> linear(x), or more where an adapter adds to it.
Project = Callable[[nn.Linear, str, Tensor], Tensor]
LayerProject = Callable[[int, nn.Linear, str, Tensor], Tensor]  # the same, with the number of the block first


def plain(linear: nn.Linear, name: str, x: Tensor) -> Tensor:
    """Apply a projection as it is."""
    return product(x, linear.weight, linear.bias) if isinstance(linear, nn.Linear) else linear(x)


# Attention of one layer, with the mask and the cache bound: q (...,H,D), k and v (...,Hkv,D) -> (...,H*D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _heads(x: Tensor, heads: int) -> Tensor:
    """(...,H*D) -> (...,H,D)."""
    return x.view(*x.shape[:-1], heads, -1)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share Hkv key and value heads; the cache is H/Hkv times smaller."""

    def __init__(self, config: TransformerConfig, device: str | None = None) -> None:
        super().__init__()
        linear = partial(nn.Linear, device=device)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.head_size
        self.q_proj = linear(config.hidden_size, self.heads * self.head_size, bias=config.qkv_bias)
        self.k_proj = linear(config.hidden_size, self.kv_heads * self.head_size, bias=config.qkv_bias)
        self.v_proj = linear(config.hidden_size, self.kv_heads * self.head_size, bias=config.qkv_bias)
        self.o_proj = linear(self.heads * self.head_size, config.hidden_size, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_size, eps=config.rms_norm_eps, device=device)
            self.k_norm = nn.RMSNorm(self.head_size, eps=config.rms_norm_eps, device=device)
        self.normed = config.qk_norm

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        """x (...,W), tokens in rows or end to end -> (...,W)."""
        q = _heads(project(self.q_proj, "q_proj", x), self.heads)  # (...,H,D)
        k = _heads(project(self.k_proj, "k_proj", x), self.kv_heads)  # (...,Hkv,D)
        v = _heads(project(self.v_proj, "v_proj", x), self.kv_heads)  # (...,Hkv,D)
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        # Positions go into queries and keys alone: they decide where to look, not what is read there.
        return project(self.o_proj, "o_proj", attend(rotate(q, cos, sin), rotate(k, cos, sin), v))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), token by token."""

    def __init__(self, config: TransformerConfig, device: str | None = None) -> None:
        super().__init__()
        linear = partial(nn.Linear, device=device)
        self.gate_proj = linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, project: Project) -> Tensor:
        # The gate decides, smoothly and for each feature, how much of `up` passes.
        gated = F.silu(project(self.gate_proj, "gate_proj", x)) * project(self.up_proj, "up_proj", x)
        return project(self.down_proj, "down_proj", gated)


class Block(nn.Module):
    """x <- x + attention(norm(x)), then x <- x + mlp(norm(x)).

    The residual stream x itself is never normalised, so that gradients reach the first layer undiminished.
    """

    def __init__(self, config: TransformerConfig, device: str | None = None) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, device=device)
        self.self_attn = Attention(config, device)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, device=device)
        self.mlp = MLP(config, device)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, project: Project) -> Tensor:
        # Attention is the only place where tokens of a text meet; everything else works on each token alone.
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend, project)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x), project)
        return out


class Transformer(nn.Module):
    """Token ids -> hidden states after the final norm; `logits` applies the LM head to them.

    recompute: keep only the states between blocks for the backward pass, and compute a block again there; the gradient
    is the same to the bit. device: "meta" for shapes without memory, which tensors of a file then fill.
    """

    def __init__(self, config: TransformerConfig, device: str | None = None) -> None:
        super().__init__()
        self.config = config
        # (V,W), read as the LM head as well: at a small width most of the weights are here, and they are stored once.
        shape = (config.vocab_size, config.hidden_size)
        # nn.Embedding would draw its first weights, for which a device without memory imports a second of libraries.
        bare = partial(nn.Embedding.from_pretrained, freeze=False)
        self.embed_tokens = nn.Embedding(*shape) if device is None else bare(torch.empty(*shape, device=device))
        self.layers = nn.ModuleList(Block(config, device) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, device=device)
        head = partial(nn.Linear, config.hidden_size, config.vocab_size, bias=False, device=device)
        self.lm_head = None if config.tied else head()
        self.in_bfloat16 = self.recompute = False

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "Transformer":
        """Draw the weights from a normal distribution with std 1/sqrt(W), norms 1; returns self.

        The two projections that end in the residual stream get 1/sqrt(2L) of that (GPT-2): the stream is a sum of 2L
        of their outputs, and its variance then does not grow with the depth.
        """
        # 1/sqrt(W) is the usual 0.02 at a width of 2,500. At a width of 128, 0.02 would be four times too small, and a
        # short pretraining would spend its first third growing the weights.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:  # a gain, where 1 changes nothing, or a bias
                parameter.fill_(float(name.endswith("norm.weight")))
                continue
            std = self.config.hidden_size**-0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (...,W) -> logits (...,V), in the dtype of the weights; tied: through the embedding."""
        return product(hidden, (self.embed_tokens if self.lm_head is None else self.lm_head).weight)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, project: LayerProject | None = None
    ) -> Tensor:
        """ids (B,T), which continue the tokens in the cache -> hidden (B,T,W).

        mask (B,T) True = real token; None = all are. Padding may stand anywhere: it is never attended to, and positions
        count real tokens only.
        """
        if cache is not None and mask is None and ids.shape[1] == 1:
            return self._step(ids, cache, project)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if cache is None:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)  # (B,T)
            visible = visible_slots(mask, ids.shape[1])  # (B,1,T,T)
            cos, sin = rotary_table(ids.shape[1], self.config, self.embed_tokens.weight)
        else:
            positions, visible = cache.enter(mask)
            cos, sin = cache.cos, cache.sin
        hidden = self._hidden(visible, len(ids))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B,T,H,D) -> (B,H,T,D)
            # Keys are cached after their rotation: a token's position never changes, so it is rotated once.
            if cache is not None:
                k, v = cache.append(layer, k, v)
            out = attention(q, k, v, visible) if hidden is None else weighted(q, k, v, hidden)
            return out.flatten(2)

        return self._blocks(ids, cos[positions], sin[positions], attend, project)

    def _step(self, ids: Tensor, cache: KVCache, project: LayerProject | None) -> Tensor:
        """One more token a row, ids (B,1) -> hidden (B,1,W): a decoding step, of fixed shapes."""
        cos, sin, visible = cache.step()
        hidden = self._hidden(visible, len(ids))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return cache.attend(layer, q, k, v, visible, hidden).flatten(2)

        return self._blocks(ids, cos, sin, attend, project)

    def packed(self, ids: Tensor, packing: Packing, project: LayerProject | None = None) -> Tensor:
        """ids (N,), the tokens of several texts end to end -> hidden (N,W); no text sees another."""
        table = rotary_table(packing.longest, self.config, self.embed_tokens.weight)
        cos, sin = (x[packing.positions] for x in table)
        hidden = {
            (grid.rows, grid.width): self._hidden(causal(grid.width, ids.device), grid.rows) for grid in packing.grids
        }

        # In a grid every text begins at slot 0 and its padding comes last. Under a causal mask no real token then sees
        # padding, and the outputs of padded slots are never read: no mask of its own is needed.
        def rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = hidden[len(q), q.shape[1]]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return attention(q, k, v, None) if mask is None else weighted(q, k, v, mask)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return packing.by_rows(rows, q, k, v).flatten(1)

        return self._blocks(ids, cos, sin, attend, project)

    def _hidden(self, visible: Tensor, rows: int) -> Tensor | None:
        """`hidden_slots` of a mask for so many rows where attention is by products; None where it is by SDPA."""
        weight, (queries, slots) = self.embed_tokens.weight, visible.shape[2:]
        pairs = rows * self.config.num_attention_heads * queries * slots
        if self.in_bfloat16 or not by_products(weight, pairs):
            return None
        return hidden_slots(visible, self.config, weight.dtype)

    def _blocks(
        self,
        ids: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        project: LayerProject | None,
    ) -> Tensor:
        """Embed ids (...), run all blocks, normalise: hidden (...,W). attend(layer, q, k, v) is the way through.

        cos, sin (...,1,D): of the tokens' positions, the same for all layers.
        """
        x = self.embed_tokens(ids)  # (...,W): the residual stream
        again = self.recompute and torch.is_grad_enabled()
        # autocast rounds the operands of each product to bfloat16. x and the norms keep float32: a sum with 8 bits of
        # precision would lose the small contributions of later blocks.
        with torch.autocast(x.device.type, torch.bfloat16) if self.in_bfloat16 else nullcontext():
            for layer, block in enumerate(self.layers):
                own = plain if project is None else partial(project, layer)
                inputs = (x, cos, sin, partial(attend, layer), own)
                x = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        hidden: Tensor = self.norm(x)
        return hidden
