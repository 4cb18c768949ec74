"""Families of decoders: what config.json says is read, written back, or refused by name and value."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.models.families import LlamaRope, TransformerConfig, config_from_hf, config_to_hf
from minirlhf.models.transformer import Transformer
from tests.helpers import CONFIG

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def test_the_config_goes_through_hugging_face_keys_and_back():
    config = replace(CONFIG, rope_theta=5000.0)
    assert config_from_hf(config_to_hf(config), "x") == config
    newer = {k: v for k, v in config_to_hf(config).items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_theta": 5000.0, "rope_type": "default"}
    assert config_from_hf(newer, "x") == config


@pytest.mark.parametrize(
    "own",
    [
        {"tied": False},
        {"head_dim": 12},
        {"qkv_bias": True, "o_bias": True},
        {"mlp_bias": True},
        {"rope_scaling": LlamaRope(8.0, 1.0, 4.0, 32)},
        {"family": "qwen2", "qkv_bias": True},
        {"family": "qwen3", "head_dim": 128, "qk_norm": True},
        {"family": "qwen3", "head_dim": 6, "qk_norm": True, "qkv_bias": True, "o_bias": True, "tied": False},
    ],
)
def test_every_family_is_written_as_it_is_read(own):
    config = replace(CONFIG, **own)
    assert config_from_hf(config_to_hf(config), "x") == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "unsupported model_type = 'gpt2'"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "unsupported model_type = 'mixtral'"),
        ({"num_local_experts": 8}, "unsupported num_experts = '8'"),
        ({"hidden_act": "gelu"}, "unsupported hidden_act = 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "unsupported rope_type = 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "unsupported rope_type = 'yarn'"),
        ({"rope_scaling": LLAMA3 | {"factor": None}}, "a value is not a number"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "key 'low_freq_factor' is missing"),
        ({"partial_rotary_factor": 0.5}, "unsupported partial_rotary_factor = '0.5'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "unsupported use_sliding_window = 'True'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "unsupported layer_types = 'sliding_attention'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unsupported quantization_config"),
        ({"head_dim": 9}, "head_dim = 9 is odd"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide 4 heads"),
        ({"hidden_size": "wide"}, "hidden_size = wide is no size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is no size"),
        ({"vocab_size": None}, "vocab_size = None is no size"),
        ({"rms_norm_eps": "small"}, "a value is not a number"),
        ({"model_type": ["llama"]}, "unsupported model_type = ['llama']"),
        ({"rope_scaling": "linear"}, "unsupported rope_parameters = 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "unsupported rope_parameters"),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "a value is not a number (llama3 with factor 0.0"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "a value is not a number (llama3 with factor 8.0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' is neither true nor false"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05 is not above 0 and finite"),
        ({"rope_theta": 0}, "rope_theta = 0.0 is not above 0 and finite"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000 is no size"),
        ({"head_dim": 2**63}, "head_size = 9223372036854775808 is no size"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name_and_value(change, said):
    with pytest.raises(InputError, match=r"config\.json") as refused:
        config_from_hf(config_to_hf(CONFIG) | change, "config.json")
    assert said in str(refused.value)


def test_qwen2_has_biases_where_its_config_says_nothing_of_them_and_qwen3_a_head_size():
    llama = config_to_hf(CONFIG)
    two = config_from_hf(llama | {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, "x")
    assert (two.qkv_bias, two.o_bias, two.mlp_bias, two.qk_norm) == (True, False, False, False)
    three = config_from_hf({k: v for k, v in llama.items() if k != "head_dim"} | {"model_type": "qwen3"}, "x")
    assert (three.qkv_bias, three.qk_norm, three.head_size) == (False, True, 128)
    assert isinstance(Transformer(replace(two, head_dim=6)).layers[0].self_attn.q_proj.bias, torch.Tensor)


def test_scaled_frequencies_by_hand():
    """Original context 32, low 1, high 4: a frequency with one turn or less in it is divided by 8, with four or more
    it stays; with two turns it is a third of the way, share = (2 - 1) / (4 - 1)."""
    rope = LlamaRope(factor=8.0, low=1.0, high=4.0, original=32)
    turn = 2 * math.pi / 32  # radians a token of one turn in 32 tokens
    found = rope.scaled(torch.tensor([0.5, 1.0, 2.0, 4.0, 5.0], dtype=torch.float64) * turn)
    expected = torch.tensor([0.5 / 8, 1 / 8, 2 * (1 / 3 + 2 / 3 / 8), 4.0, 5.0], dtype=torch.float64) * turn
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)  # a few roundings of float64, 1.1e-16 each


def test_frequencies_of_a_plain_decoder_by_hand():
    config = TransformerConfig(9, 8, 8, 1, 2, 2, 16, rope_theta=100.0)  # two heads of size 4: 1 and 1/10
    torch.testing.assert_close(config.rotary_frequencies(torch.device("cpu")), torch.tensor([1.0, 0.1]).double())
