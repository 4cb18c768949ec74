"""Which library multiplies in decoding: as exact as float32, chosen for large models alone, given back."""

import pytest
import torch

from minirlhf.models import products
from minirlhf.models.attention import KVCache
from minirlhf.models.families import TransformerConfig
from tests.helpers import seeded, small_trunk

SIZES = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


def chosen():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def library(monkeypatch):
    """What torch is told for each product, on a CPU where oneDNN is exact."""
    seen, linear = [], torch.nn.functional.linear

    def spied(x, weight, bias=None):
        seen.append(chosen())
        return linear(x, weight, bias)

    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    monkeypatch.setattr(products.F, "linear", spied)
    return seen


def weight(rows=products.LARGE // 16):
    return torch.zeros(rows, 16)


def test_products_with_rounded_operands_are_told_from_those_of_float32():
    x, weight = torch.randn(16, 512, generator=seeded(1)), torch.randn(64, 512, generator=seeded(2))
    assert products.is_float32(x @ weight.T, x, weight)
    assert not products.is_float32((x.bfloat16() @ weight.bfloat16().T).float(), x, weight)

    def tf32(t):  # 10 bits of the fraction are kept, 13 cut
        return (t.view(torch.int32) >> 13 << 13).view(torch.float32)

    assert not products.is_float32(tf32(x) @ tf32(weight).T, x, weight)


def test_the_choice_holds_in_the_block_and_ends_with_it():
    before = chosen()
    with pytest.raises(KeyError), products.onednn():
        assert chosen() == "bf16"
        raise KeyError
    assert chosen() == before


def test_one_token_a_row_and_a_large_weight_go_to_onednn_and_nothing_else(library):
    before, step = chosen(), torch.zeros(3, 1, 16)
    assert products.product(step, weight()).shape == (3, 1, products.LARGE // 16)
    products.product(torch.zeros(3, 2, 16), weight())  # two tokens a row
    products.product(torch.zeros(3, 16), weight())  # tokens end to end, as learning and scoring have them
    products.product(step, weight()[1:])
    products.product(step.bfloat16(), weight().bfloat16())
    products.product(step.to("meta"), weight().to("meta"))
    assert library == ["bf16", *[before] * 5]
    assert chosen() == before


def test_the_last_of_several_tokens_is_a_step_whose_weight_is_not_copied():
    x, weight = torch.randn(3, 5, 16, generator=seeded(1)), torch.randn(7, 16, generator=seeded(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        found = products.product(x[:, -1:], weight)
    assert torch.equal(found[:, 0], x[:, -1] @ weight.T)
    assert "aten::bmm" not in {event.key for event in seen.key_averages()}


def test_where_it_would_round_more_it_is_not_used(library, monkeypatch):
    monkeypatch.setattr(products, "onednn_is_exact", lambda: False)
    products.product(torch.zeros(3, 1, 16), weight())
    assert library == [chosen()]


def test_a_model_decodes_the_same_logits_with_it(monkeypatch):
    if not products.onednn_is_exact():
        pytest.skip("this CPU keeps torch's default library: it has no AVX-512, or oneDNN rounds operands on it")
    trunk = small_trunk(0, TransformerConfig(**SIZES, vocab_size=products.LARGE // 64))
    ids, found = torch.randint(3, products.LARGE // 64, (16, 9), generator=seeded(3)), []
    used, onednn = [], products.onednn
    monkeypatch.setattr(products, "onednn", lambda: used.append(1) or onednn())
    for exact in (True, False):
        monkeypatch.setattr(products, "onednn_is_exact", lambda exact=exact: exact)
        with torch.no_grad():
            cache = KVCache(trunk.config, 16, 9, trunk.embed_tokens.weight)
            trunk(ids[:, :8], cache=cache)
            found.append(torch.log_softmax(trunk.logits(trunk(ids[:, 8:], cache=cache)), -1))
    assert used == [1]  # the LM head alone is as large as that
    assert (found[0] - found[1]).abs().max() < 1e-5  # float32 rounding of sums of 64 products
