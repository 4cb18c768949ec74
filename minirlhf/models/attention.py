"""Attention: rotary positions, the KV cache, and softmax(q k^T / sqrt(D)) v.

There are two ways to compute it. torch's scaled_dot_product_attention (SDPA) has a kernel for every device and number
type, and never holds the T x S weights. Two batched matrix products with a softmax between them hold those weights, and
are 1.1 to 1.7 times as fast on a CPU in float32, where texts are short, and twice as fast for the single query of a
decoding step (docs/performance.md). `by_products` chooses, by device, number type and size alone.

A decoding step (`KVCache.step`, `KVCache.attend`) has fixed shapes as long as `reading` is fixed: its slot is a tensor
of the device, nothing depends on a number that the device would have to tell, and every tensor stays where it is. So it
can be captured and replayed (models/decoding.py). Without `reading`, as on a CPU, the slot is a number, and only the
filled slots are read.

Shapes: B rows, T queries, S slots, H query heads, Hkv key and value heads, G = H / Hkv, D head size, L layers.
Sources: RoPE 2104.09864, GQA 2305.13245.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minirlhf.models.families import TransformerConfig

PAIRS = 1 << 22  # most weights of attention in a layer, B H T S: 16 MiB, which are kept for the backward pass


def rotary(positions: Tensor, config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin of the rotation angles p theta^(-2i/D), i < D/2, twice in a row.

    positions (...) -> two (...,1,D): cos, cos and -sin, sin, as `rotate` takes them.
    """
    # In float64, which MPS lacks: at position 2,000 an angle in float32 would be off by 1e-4 radians, in bfloat16 by 4.
    places = positions.cpu() if positions.device.type == "mps" else positions
    angles = places.unsqueeze(-1).double() * config.rotary_frequencies(places.device)  # (...,D/2)
    cos, sin = angles.cos(), angles.sin()
    both = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (...,D)
    found = [x.unsqueeze(-2).to(dtype).to(positions.device) for x in both]  # (...,1,D): the same for all heads
    return found[0], found[1]


def rotary_table(length: int, config: TransformerConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """`rotary` of the positions 0 to length - 1 in device and dtype of `like`: two (length,1,D), to be indexed."""
    return rotary(torch.arange(length, device=like.device), config, like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_(i + D/2)) of queries or keys (...,H,D) by their position's angles: (...,H,D).

    Rotating q by its angle and k by its own makes q.k a function of the distance between the two positions alone.
    """
    # (a, b) -> (a cos - b sin, b cos + a sin). The paper pairs neighbours (x_2i, x_2i+1), Hugging Face's Llama the two
    # halves: the same up to a permutation of the features, but weights saved for one layout are wrong in the other.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def by_products(x: Tensor, pairs: int) -> bool:
    """True where that many weights of attention come from matrix products; x tells device and number type."""
    return x.dtype in (torch.float32, torch.float64) and x.device.type in ("cpu", "meta") and pairs <= PAIRS


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by SDPA: q (B,H,T,D), k and v (B,Hkv,S,D) -> (B,T,H,D).

    visible: (B,1,T,S), True = may attend to; None = causal.
    """
    # is_causal without a mask lets torch take its fastest kernel, which accepts no mask. enable_gqa lets several query
    # heads read one key head.
    shared = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=shared)
    return out.transpose(1, 2)


def weighted(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Compute the same by products of matrices; hidden, from `hidden_slots`, is 0 for visible slots, else -inf."""
    (b, h, t, d), kv = q.shape, k.shape[1]
    # The G query heads of a key head stand below one another, as G T queries of one product.
    q = q.reshape(b * kv, h // kv * t, d)
    weights = torch.baddbmm(hidden, q, k.flatten(0, 1).transpose(1, 2), alpha=d**-0.5).softmax(dim=-1)
    return torch.bmm(weights, v.flatten(0, 1)).view(b, h, t, d).transpose(1, 2)


def hidden_slots(visible: Tensor, config: TransformerConfig, dtype: torch.dtype) -> Tensor:
    """visible (B,1,T,S) as a summand of products: (B Hkv, G T, S), 0 where it is True, -inf elsewhere.

    Where B is 1 it is (1, G T, S), the same for all rows and heads.
    """
    (b, _, t, s), kv = visible.shape, config.num_key_value_heads
    groups = config.num_attention_heads // kv
    summand = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, float("-inf"))
    rows = 1 if b == 1 else b * kv
    return summand.unsqueeze(1).expand(b, rows // b, groups, t, s).reshape(rows, groups * t, s)


def causal(length: int, device: torch.device) -> Tensor:
    """Attention mask (1,1,T,T) of texts that begin at slot 0: each token sees itself and what is before it."""
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()


def visible_slots(real: Tensor, queries: int) -> Tensor:
    """Attention mask (B,1,T,S), True = may attend to: real (B,S) tokens at or before each query, the last T slots."""
    slots = torch.arange(real.shape[1], device=real.device)  # (S,)
    query = slots[-queries:].unsqueeze(1)  # (T,1)
    # A query always sees itself: a padded one would otherwise have nothing to attend to, and a softmax over -inf alone
    # is NaN. The 1 stands for the heads, which all have the same mask.
    return (((slots <= query) & real.unsqueeze(1)) | (slots == query)).unsqueeze(1)


class KVCache:
    """Keys and values of all layers, (L,B,Hkv,S,D) each; the first `filled` of the S slots are in use.

    It also keeps which slots hold real tokens, `seen` (B,S), and how many of them each row has, `count` (B,1): a
    decoding step then passes its own tokens and no mask of the past. slot (1,): the slot of the last token. reading:
    slots that a decoding step reads; None: those that are filled.
    """

    def __init__(self, config: TransformerConfig, batch: int, length: int, like: Tensor) -> None:
        # Allocated at the final length: growing by torch.cat would copy the whole cache at every step. Heads stand
        # before slots, as attention wants them, so that keys[layer, :, :, :filled] is a view: nothing is transposed.
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_size)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.seen = torch.zeros(batch, length, dtype=torch.bool, device=like.device)
        self.count = torch.zeros(batch, 1, dtype=torch.long, device=like.device)
        self.slot = torch.full((1,), -1, device=like.device)
        self.cos, self.sin = rotary_table(length, config, like)
        self.filled = 0
        self.reading: int | None = None

    def enter(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Make room for T tokens, real where mask (B,T) is True; returns their positions (B,T) and which slots each of
        them may attend to (B,1,T,filled)."""
        t, start = mask.shape[1], self.filled
        self.filled += t
        self.slot += t
        self.seen[:, start : self.filled] = mask
        # A padded token takes the position of the real token before it (-1 if there is none, hence the clamp). Any
        # position would do, since nobody attends to it; but it must not move the positions of the real ones.
        positions = self.count + mask.long().cumsum(dim=1) - 1
        self.count = positions[:, -1:] + 1
        return positions.clamp(min=0), visible_slots(self.seen[:, : self.filled], t)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write key and value (B,Hkv,T,D) into the slots that `enter` made room for; returns all keys and values of the
        layer so far, (B,Hkv,filled,D) each."""
        start = self.filled - key.shape[2]
        self.keys[layer, :, :, start : self.filled] = key
        self.values[layer, :, :, start : self.filled] = value
        return self.keys[layer, :, :, : self.filled], self.values[layer, :, :, : self.filled]

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make room for one real token a row: returns its cos and sin (B,1,1,D), and the slots that it may see,
        (B,1,1,n) True for those."""
        self.filled += 1
        self.slot += 1
        self.seen.index_fill_(1, self.slot, True)
        cos, sin = self.cos[self.count], self.sin[self.count]
        self.count += 1
        return cos, sin, self.seen[:, None, None, : self.reading or self.filled]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, hidden: Tensor | None) -> Tensor:
        """Attention of the one token a row that `step` made room for: q (B,1,H,D), k and v (B,1,Hkv,D) -> (B,1,H,D).

        hidden: `hidden_slots` of `visible`, or None for SDPA.
        """
        slots = visible.shape[-1]
        keys, values = self.keys[layer], self.values[layer]
        for kept, new in ((keys, k), (values, v)):
            if self.reading is None:  # the slot is a number here, and a copy to it takes a fourth of the time
                kept[:, :, self.filled - 1] = new[:, 0]
            else:
                kept.index_copy_(2, self.slot, new.transpose(1, 2).to(kept.dtype))
        q, keys, values = q.transpose(1, 2), keys[:, :, :slots], values[:, :, :slots]
        return attention(q, keys, values, visible) if hidden is None else weighted(q, keys, values, hidden)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (n,) only, in this order: a batch shrinks as its rows finish."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.seen, self.count = self.seen[rows], self.count[rows]
