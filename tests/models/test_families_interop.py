"""The transformers library against models/transformer.py: nine architectures, random weights, both directions."""

import json

import pytest
import torch

from minirlhf.errors import CheckpointError
from minirlhf.models.attention import KVCache
from minirlhf.models.packing import Packing
from minirlhf.store.weights import load_transformer, save_transformer
from minirlhf.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.interop
CLOSE = 5e-5  # logits of size 10 in float32: the largest difference seen is 3e-6, and a fault makes 5e-3 and more

SIZES = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 10000.0,
}  # fmt: skip
KINDS = {
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama untied": ("Llama", {"tie_word_embeddings": False}),
    "llama llama3": ("Llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "llama head_dim": ("Llama", {"head_dim": 20, "tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 biases": ("Qwen3", {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": False}),
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def made_there(transformers, kind, folder, **saving):
    """Random model of a kind; norms and biases are random, too, so that each of them counts."""
    family, own = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | own)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder, **saving)
    return model


def difference(ours, theirs):
    """Largest |logit here - logit there| over three texts: padded on the left, packed, and decoded over a cache."""
    generator = torch.Generator().manual_seed(1)
    lengths = (24, 40, 9)
    texts = [torch.randint(3, 300, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        expected = [theirs(input_ids=text.unsqueeze(0)).logits[0] for text in texts]
        packed = ours.logits(ours.packed(torch.cat(texts), Packing.of(lengths))).split(lengths)
        ids, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, 40 - len(text) :], mask[row, 40 - len(text) :] = text, True
        cache = KVCache(ours.config, 3, 40, ours.embed_tokens.weight)
        first = ours(ids[:, :36], mask[:, :36], cache)
        rest = [ours(ids[:, at : at + 1], mask[:, at : at + 1], cache) for at in range(36, 40)]
        cached = ours.logits(torch.cat([first, *rest], dim=1))
    worst = 0.0
    for row, (text, logits) in enumerate(zip(texts, expected, strict=True)):
        worst = max(worst, float((packed[row] - logits).abs().max()))
        worst = max(worst, float((cached[row, 40 - len(text) :] - logits).abs().max()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_nine_architectures_compute_the_same(kind, tmp_path, transformers):
    theirs = made_there(transformers, kind, tmp_path)
    ours = load_transformer(tmp_path)
    assert difference(ours, theirs) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_back_is_the_same_to_the_bit(kind, tmp_path, transformers):
    theirs = made_there(transformers, kind, tmp_path / "theirs")
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 270)
    (tmp_path / "ours").mkdir()
    save_transformer(tmp_path / "ours", load_transformer(tmp_path / "theirs"), tokenizer)
    again, told = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float32, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        assert (again.eval()(ids).logits - theirs(ids).logits).abs().max() == 0.0


def test_two_shards_are_one_model_and_a_missing_one_is_named(tmp_path, transformers):
    theirs = made_there(transformers, "llama untied", tmp_path, max_shard_size="250KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) == 2
    assert difference(load_transformer(tmp_path), theirs) < CLOSE
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"a file of the weights is missing: \S*{shards[1].name}"):
        load_transformer(tmp_path)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_halved_weights_on_disk_are_read_in_float32(name, tmp_path, transformers):
    made = made_there(transformers, "qwen2 untied", tmp_path / "whole")
    made.to(getattr(torch, name)).save_pretrained(tmp_path / name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
    ours = load_transformer(tmp_path / name)
    assert ours.embed_tokens.weight.dtype == torch.float32
    assert difference(ours, theirs) < CLOSE
    assert load_transformer(tmp_path / name, torch.bfloat16).layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_faults_of_the_computation_would_be_seen(tmp_path, transformers, monkeypatch):
    """Without the scaling of llama3, with a sign of the rotation turned, or a norm left out, the logits are others."""
    from minirlhf.models import transformer as decoder
    from minirlhf.models.families import LlamaRope

    theirs = made_there(transformers, "llama llama3", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaRope, "scaled", lambda self, frequencies: frequencies)
        assert difference(load_transformer(tmp_path), theirs) > 100 * CLOSE
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "rotate", lambda x, cos, sin: x * cos + torch.cat(x.chunk(2, -1)[::-1], -1) * sin)
        assert difference(load_transformer(tmp_path), theirs) > 100 * CLOSE
    theirs = made_there(transformers, "qwen3 tied", tmp_path / "qwen3")
    ours = load_transformer(tmp_path / "qwen3")
    for block in ours.layers:
        block.self_attn.normed = False
    assert difference(ours, theirs) > 100 * CLOSE


def test_an_index_that_leads_out_of_the_directory_is_refused(tmp_path, transformers):
    made_there(transformers, "llama untied", tmp_path, max_shard_size="250KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map does not name files beside it"):
        load_transformer(tmp_path)
