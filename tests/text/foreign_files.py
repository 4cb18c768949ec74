"""Tokenizers of the families that minirlhf reads, tiny, written as others write them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["the cat sat on the mat and the cat ate", "user asked 123 things, assistant answered!", "naïve 好 day\n\n"] * 3
WORDS = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}"
    "<|im_start|>system\nYou help.<|im_end|>\n{%- endif %}\n"
    "{%- for m in rest %}\n{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n{%- endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{% for m in messages %}{% set text = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(names: list[str], words: str | None = None, size: int = 320, nfc: bool = False) -> Tokenizer:
    """Byte-level BPE whose special tokens stand behind the vocabulary."""
    rust = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words is None else []
    steps += [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    rust.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=words is None)])
    rust.decoder = decoders.ByteLevel()
    if nfc:
        rust.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    rust.add_special_tokens(special(*names))
    return rust


def sentencepiece(metaspace: str | None = None) -> Tokenizer:
    """BPE on characters with bytes for what it lacks; a space in front by the normaliser, or by Metaspace."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    rust = Tokenizer(models.BPE())
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(rust.to_str())["model"]
    vocab = {name: i for i, name in enumerate([*names, *sorted(learned["vocab"], key=learned["vocab"].get)])}
    merges = [tuple(pair) for pair in learned["merges"]]
    whole = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace is None:
        whole.normalizer = rust.normalizer
    else:
        whole.pre_tokenizer = pre_tokenizers.Metaspace("▁", metaspace, split=False)
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    whole.add_special_tokens(special("<unk>", "<s>", "</s>"))
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return whole


def write(folder: Path, rust: Tokenizer | dict[str, Any], config: dict[str, Any], **files: Any) -> Path:
    """Write a tokenizer's directory; files: name -> object, "config" for config.json and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    content = rust if isinstance(rust, dict) else json.loads(rust.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, value in {"tokenizer_config": defaults | config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def smollm(folder: Path, **config: Any) -> Path:
    rust = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return write(folder, rust, names | {"chat_template": CHATML} | config)


def qwen(folder: Path, **config: Any) -> Path:
    rust = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], WORDS.replace("{1,3}", ""), nfc=True)
    rust.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    ends = [rust.token_to_id("<|im_end|>"), rust.token_to_id("<|endoftext|>")]
    chat = [{"name": "tools", "template": "no"}, {"name": "default", "template": WITH_SYSTEM}]
    return write(folder, rust, names | {"chat_template": chat} | config, generation_config={"eos_token_id": ends})


def llama2(folder: Path, metaspace: str | None = None, **config: Any) -> Path:
    form = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    parts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names = {name: form | {"content": content} for name, content in parts.items()}
    return write(folder, sentencepiece(metaspace), names | {"chat_template": INSTRUCT, "add_bos_token": True} | config)


def llama3(folder: Path, **config: Any) -> Path:
    rust = byte_level(["<|begin|>", "<|eos|>", "<|start|>", "<|end|>", "<|eot|>"], WORDS)
    begin, end, eot = (rust.token_to_id(name) for name in ("<|begin|>", "<|eos|>", "<|eot|>"))
    rust.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]),
        ]
    )
    names = {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "chat_template": HEADERS}
    return write(folder, rust, names | config, generation_config={"eos_token_id": [end, eot]})


FAMILIES = {"smollm": smollm, "qwen": qwen, "llama2": llama2, "llama3": llama3}
