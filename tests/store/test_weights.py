"""Models on disk: Hugging Face's names, back to the bit, and nothing else is let in."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from minirlhf.errors import CheckpointError, InputError, UserError
from minirlhf.models.sampler import Sampler
from minirlhf.pipeline.build import resolve_device
from minirlhf.store.files import read_json
from minirlhf.store.models import load_policy, save_policy
from minirlhf.store.weights import load_transformer, read_tensors, save_transformer
from minirlhf.text.tokenizer import train_tokenizer
from tests.helpers import CONFIG, small_policy, small_trunk


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a text to train a tokenizer on"], 300)


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_directory_whose_name_is_not_utf_8(tmp_path, tokenizer):
    try:
        (tmp_path / "n\udcff").mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    save_transformer(tmp_path / "n\udcff", small_trunk(), tokenizer)
    same(small_trunk(), load_transformer(tmp_path / "n\udcff"))


def test_a_transformer_comes_back_to_the_bit_under_hugging_faces_names(tmp_path, tokenizer):
    trunk = small_trunk()
    save_transformer(tmp_path, trunk, tokenizer)
    loaded = load_transformer(tmp_path)
    same(trunk, loaded)
    assert loaded.config == CONFIG
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "model.embed_tokens.weight" in names
    assert {f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkvo"} <= names
    assert {f"model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")} <= names
    assert "lm_head.weight" not in names  # tied
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["LlamaForCausalLM"]
    assert saved["tie_word_embeddings"] is True
    assert (saved["pad_token_id"], saved["bos_token_id"], saved["eos_token_id"]) == (
        *(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id),
    )
    assert (saved["num_hidden_layers"], saved["num_key_value_heads"], saved["dtype"]) == (2, 2, "float32")


@pytest.mark.parametrize("separate", [False, True])
def test_a_policy_comes_back_with_its_value_head_and_its_scores(tmp_path, tokenizer, separate):
    policy = small_policy(separate_critic=separate)
    save_policy(tmp_path, policy, tokenizer)
    loaded = load_policy(tmp_path, policy.sampler)
    same(policy, loaded)
    head = set(load_file(tmp_path / "value_head.safetensors"))
    assert any(name.startswith("critic.") for name in head) == separate
    assert not any(name.startswith("model.") for name in head)


def change(directory, file, **changes):
    """Rewrite tensors of a file; None removes one."""
    tensors = load_file(directory / file) | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / file)


NORM = "model.norm.weight"


def tensors(**changes):
    return lambda d: change(d, "model.safetensors", **changes)


def header(edit, data=b""):
    """A model file whose header is what `edit` makes of it, as text; `data` goes behind."""

    def apply(directory):
        file = directory / "model.safetensors"
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        text = edit(content[8 : 8 + size].decode()).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :] + data)

    return apply


def many(text):
    empty = ",".join(f'"x{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(5_000))
    return text.rstrip()[:-1] + "," + empty + "}"


FAULTS = {
    "another dtype": (
        tensors(model__norm__weight=torch.ones(16).double()),
        "norm.weight is torch.float64, expected",
    ),
    "whole numbers": (tensors(model__norm__weight=torch.ones(16).int()), "norm.weight is torch.int32, expected"),
    "five thousand tensors more": (header(many), "model.safetensors"),
    "two tensors at one place": (
        header(lambda text: re.sub(r'"data_offsets":\[\d+,\d+\]', '"data_offsets":[0,64]', text)),
        "not a readable safetensors file",
    ),
    "a tensor that ends before it begins": (
        header(lambda text: re.sub(r'"data_offsets":\[(\d+),(\d+)\]', r'"data_offsets":[\2,\1]', text)),
        "not a readable safetensors file",
    ),
    "bytes behind the last tensor": (header(lambda text: text, b"\0" * 8), "not a readable safetensors file"),
    "a tensor too few": (tensors(model__norm__weight=None), "norm.weight"),
    "a tensor too many": (tensors(model__extra=torch.ones(1)), "extra"),
    "another shape": (tensors(model__norm__weight=torch.ones(15)), "norm.weight has shape (15,), expected (16,)"),
    "a NaN": (tensors(model__norm__weight=torch.full((16,), torch.nan)), "norm.weight is not finite"),
    "an infinity": (tensors(model__norm__weight=torch.full((16,), torch.inf)), "norm.weight is not finite"),
    "no value head": (lambda d: (d / "value_head.safetensors").unlink(), "not a readable safetensors file"),
    "a strange value head": (lambda d: change(d, "value_head.safetensors", x=torch.ones(1)), "tensors differ by ['x']"),
    "a cut file": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
        "not a readable safetensors file",
    ),
    "a pickle": (lambda d: (d / "model.safetensors").write_bytes(b"\x80\x04K\x01."), "not a readable safetensors"),
    "an empty file": (lambda d: (d / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
    "a huge header": (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 64), "not a readable safetensors"),
    "no config": (lambda d: (d / "config.json").unlink(), "not readable as JSON"),
    "a config that is a list": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "a deep config": (lambda d: (d / "config.json").write_text("[" * 100_000), "not readable as JSON"),
    "a config of another width": (
        lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace(": 24", ": 32")),
        "has shape",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_anything_else_is_refused_in_a_line_that_names_it(tmp_path, tokenizer, fault):
    save_policy(tmp_path, small_policy(), tokenizer)
    damage, said = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        load_policy(tmp_path, Sampler(1.0, banned=(0, 1), stops=(2,)))
    assert isinstance(error.value, CheckpointError | InputError)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_readers_name_the_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        read_json(tmp_path / "nowhere")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda' is not there"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="'cuda:2' is not there"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"'mps' is not there: run\.device; use --device cpu"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
