"""Byte-level BPE from the fields of a GGUF file: tokens, merges and types of tokens become a tokenizer.json.

A GGUF file names its word pattern and does not hold it (`tokenizer.ggml.pre`), and a wrong pattern would give other ids
without any error. gpt-2 and qwen2 are compared with the transformers library; smollm is gpt-2 with each digit a word of
its own, as SmolLM2's tokenizer.json has it.

Not here: reading the file (gguf.py), and the project's own tokenizers (text/tokenizer.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from minirlhf.errors import InputError

CONTROL, USER_DEFINED = 3, 4  # types of tokens: special; and a text of its own that no merge makes
QWEN_WORDS: Final = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokenizer of a GGUF file: tokens and their types by id, merges ("left right", most frequent first), name of the
    word pattern, and the ids of special tokens by name (bos, eos, eot, eom, unk, pad), as far as the file has them."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    words: str
    ids: dict[str, int]


def special_names(vocabulary: Vocabulary, where: str) -> dict[str, str]:
    """Entries of tokenizer_config.json: bos_token, eos_token, pad_token and unk_token, those that there are."""
    if "eos" not in vocabulary.ids:
        raise InputError("tokenizer.ggml.eos_token_id is missing", where, "give a model that knows where a text ends")
    known = ("bos", "eos", "pad", "unk")
    return {f"{name}_token": vocabulary.tokens[vocabulary.ids[name]] for name in known if name in vocabulary.ids}


def bpe_json(vocabulary: Vocabulary, where: str) -> str:
    """Content of tokenizer.json. Raises InputError for tokens that do not fit together."""
    todo = "give a GGUF file with a whole tokenizer"
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    ids = {token: number for number, token in enumerate(tokens)}
    # All of it is looked at before the library sees it: its Rust core panics on a crafted vocabulary.
    if not tokens or not all(isinstance(token, str) and token for token in tokens) or len(ids) < len(tokens):
        raise InputError("tokenizer.ggml.tokens holds one twice, or one without a letter", where, todo)
    if len(kinds) != len(tokens):
        what = f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens"
        raise InputError(what, where, todo)
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if left not in ids or right not in ids or left + right not in ids:
            raise InputError(f"tokenizer.ggml.merges has {merge!r}, which no tokens make", where, todo)
        merges.append((left, right))
    rust = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    set_words(rust, vocabulary.words, where)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(added(tokens, kinds, CONTROL))
    rust.add_tokens(added(tokens, kinds, USER_DEFINED))
    return rust.to_str(pretty=True) + "\n"


def added(tokens: Sequence[str], kinds: Sequence[int], kind: int) -> list[AddedToken]:
    """The tokens of this type, which are found in a text before it is split into words."""
    found = [token for token, own in zip(tokens, kinds, strict=True) if own == kind]
    return [AddedToken(token, normalized=False) for token in found]


def set_words(rust: tokenizers.Tokenizer, words: str, where: str) -> None:
    """Set the word pattern of this name (and the normaliser that belongs to it)."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if words == "gpt-2":
        rust.pre_tokenizer = gpt2
    elif words == "smollm":
        rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    elif words == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
        symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.pre_tokenizer = pre_tokenizers.Sequence([split, symbols])
        rust.normalizer = normalizers.NFC()
    else:
        todo = "known are gpt-2, smollm and qwen2"
        raise InputError(f"unsupported tokenizer.ggml.pre = {words!r}", where, todo)
