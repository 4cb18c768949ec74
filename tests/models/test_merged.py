"""A decoding step by merged weights: the plain model's numbers, by fewer operations; who keeps the plain step."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.models import merged as merged_module
from minirlhf.models.attention import KVCache
from minirlhf.models.families import TransformerConfig
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.lora import PARTS, Adapted, Adapter
from minirlhf.models.merged import MergedModel, decoding_model, merged_elements, merges
from minirlhf.models.transformer import Transformer
from tests.helpers import CONFIG, Letters, seeded, small_policy, small_trunk

TEXTS = ["abc", "j", "hgfedcba", "ba"]


def cache_of(model, rows=3, length=9):
    """Cache of three rows that have read prompts of different lengths, padded on the left."""
    cache = KVCache(model.config, rows, length, model.embed_tokens.weight)
    mask = torch.tensor([[False, False, True], [True, True, True], [False, True, True]])
    model(torch.tensor([[0, 0, 4], [5, 6, 7], [0, 8, 9]]), mask, cache)
    return cache


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_steps_are_those_of_the_plain_model(kv_heads):
    model = small_trunk(config=replace(CONFIG, hidden_size=16, num_attention_heads=4, num_key_value_heads=kv_heads))
    plain, other = cache_of(model), cache_of(model)
    merged = MergedModel(model)
    for step in range(4):
        ids = torch.tensor([[4 + step], [6], [3]])
        # In float64: the same sums in another order.
        torch.testing.assert_close(merged(ids, other), model(ids, cache=plain), atol=1e-12, rtol=1e-10)
    assert torch.equal(plain.count, other.count)
    torch.testing.assert_close(other.keys, plain.keys)


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_fixed_slots_give_the_same_as_the_filled_ones():
    """With `reading` a step has fixed shapes, as a graph wants them."""
    model = small_trunk()
    plain, fixed = cache_of(model), cache_of(model)
    fixed.reading = fixed.keys.shape[3]
    merged = MergedModel(model)
    for _ in range(3):
        ids = torch.tensor([[4], [6], [3]])
        torch.testing.assert_close(merged(ids, fixed), merged(ids, plain))


@pytest.mark.usefixtures("double")
def test_texts_are_the_same_token_for_token(monkeypatch):
    policy, batch = small_policy(), PromptBatch.build(TEXTS, [{}] * 4, Letters())
    found = generate(policy, batch, Letters(), max_new_tokens=20, generator=seeded())
    monkeypatch.setattr(merged_module, "MOST_MERGED", 0)
    assert found.completions == generate(policy, batch, Letters(), max_new_tokens=20, generator=seeded()).completions


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_layer_takes_six_products_in_place_of_nine():
    """q, k and v; q.k; weights.v; o; gate and up; down: without merging three, one, one, one, two and one."""
    model = small_trunk()
    found = []
    for step in (MergedModel(model), lambda ids, cache: model(ids, cache=cache)):
        cache = cache_of(model)
        with Counting() as counted:
            step(torch.tensor([[4], [6], [3]]), cache)
        found.append(counted.products)
    assert found == [6 * model.config.num_hidden_layers, 9 * model.config.num_hidden_layers]


def test_it_is_made_for_small_plain_models_alone():
    """Biases, normed heads, adapters, packed weights, hooks, bfloat16 and large models keep their own step."""
    plain = small_trunk()
    cache = KVCache(CONFIG, 2, 8, plain.embed_tokens.weight)
    assert isinstance(decoding_model(plain, cache), MergedModel)
    for key in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm"):
        other = small_trunk(config=replace(CONFIG, **{key: True}))
        assert not isinstance(decoding_model(other, cache), MergedModel)
    adapted = Adapted(plain, Adapter(CONFIG, 2, 4.0, tuple(PARTS)).initialise(seeded()))
    assert not isinstance(decoding_model(adapted, cache), MergedModel)
    packed = small_trunk()
    packed.layers[0].self_attn.q_proj = torch.nn.Identity()  # as good as a QuantisedLinear: it is no nn.Linear
    assert not isinstance(decoding_model(packed, cache), MergedModel)
    hooked = small_trunk()
    hooked.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not isinstance(decoding_model(hooked, cache), MergedModel)
    halved = small_trunk()
    halved.in_bfloat16 = True
    assert not isinstance(decoding_model(halved, cache), MergedModel)


def test_the_limit_by_hand():
    """2 layers of (4 + 2 2) heads of 8 and twice 40 wide, 32 inputs: 2 (64 + 80) 32 weights are copied."""
    config = TransformerConfig(100, 32, 40, 2, 4, 2, 64)
    assert merged_elements(config) == 9216
    assert merges(config)
    merged = MergedModel(Transformer(config))
    assert sum(weight.numel() for weight in [*merged.of_heads, *merged.of_mlp]) == 9216
    big = replace(config, num_hidden_layers=1024)  # 2^22 / 4,608 is 910
    assert not merges(big)
