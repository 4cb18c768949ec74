"""Which library multiplies in decoding: as exact as float32, chosen for large models alone, given back."""

import pytest
import torch

from minirlhf.models import products
from minirlhf.models.families import TransformerConfig
from minirlhf.models.transformer import KVCache
from tests.helpers import seeded, small_trunk

HEAD = torch.zeros(products.LARGE // 16, 16)


def chosen():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)


def test_products_with_rounded_operands_are_told_from_those_of_float32():
    x, weight = torch.randn(16, 512, generator=seeded(1)), torch.randn(64, 512, generator=seeded(2))
    assert products.is_float32(x @ weight.T, x, weight)
    assert not products.is_float32((x.bfloat16() @ weight.bfloat16().T).float(), x, weight)

    def tf32(t):  # 10 bits of the fraction are kept, 13 cut
        return (t.view(torch.int32) >> 13 << 13).view(torch.float32)

    assert not products.is_float32(tf32(x) @ tf32(weight).T, x, weight)


def test_the_choice_holds_in_the_block_and_ends_with_it(exact):
    before = chosen()
    with pytest.raises(KeyError), products.decoding_products(HEAD):
        assert chosen() == "bf16"
        raise KeyError
    assert chosen() == before


@pytest.mark.parametrize("head", [HEAD[1:], HEAD.bfloat16(), HEAD.to("meta")])
def test_small_models_other_precisions_and_other_devices_keep_their_library(exact, head):
    before = chosen()
    with products.decoding_products(head):
        assert chosen() == before


def test_where_it_would_round_more_it_is_not_used(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_exact", lambda: False)
    before = chosen()
    with products.decoding_products(HEAD):
        assert chosen() == before


def test_a_model_decodes_the_same_logits_with_it():
    if not products.onednn_is_exact():
        pytest.skip("this CPU keeps torch's default library: it has no AVX-512, or oneDNN rounds operands on it")
    trunk = small_trunk(0, TransformerConfig(**{**CONFIG_SIZES, "vocab_size": 1 << 16}))
    ids, found = torch.randint(3, 1 << 16, (16, 9), generator=seeded(3)), []
    for head in (trunk.embed_tokens.weight, HEAD[1:]):
        with torch.no_grad(), products.decoding_products(head):
            cache = KVCache(trunk.config, 16, 9, head)
            parts = [trunk(part, cache=cache) for part in (ids[:, :8], ids[:, 8:])]
            found.append(torch.log_softmax(trunk.logits(torch.cat(parts, 1)), -1))
    assert not torch.equal(*found)  # another library did the work
    assert (found[0] - found[1]).abs().max() < 1e-5  # float32 rounding of sums of 64 to 256 products


CONFIG_SIZES = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
