"""Cores of foreign tokenizers: what a checked tokenizer.json says, as objects of the `tokenizers` library.

Two families of BPE are read: byte-level (GPT-2, Qwen, Llama 3, SmolLM) and sentencepiece-like with bytes for characters
that are not in the vocabulary (Llama 2). Only parts that were checked here reach the library's Rust core, which would
end some files with a panic and a trace on stderr. Not here: special tokens and the other files (foreign.py).
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, models

from minirlhf.errors import InputError
from minirlhf.text.splitting import SPACE, asked, splitting
from minirlhf.text.tokenizer import BYTE_SYMBOLS, Malformed

LARGEST_ID: Final = 2**31
_TRIALS: Final = (*(character * 400 for character in "a 1!\n'好"), "a1 !\n" * 100)


@dataclass(frozen=True)
class Added:
    """Token that was added to the vocabulary and is found in a text before anything else; `special`: it is no text."""

    token: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True

    @classmethod
    def of(cls, entry: Any, token: Any) -> "Added":
        """Read an entry of `added_tokens` (Malformed)."""
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(token) is not int or not 0 <= token < LARGEST_ID:
            raise Malformed(f"an added token has no content or no id: {str(entry)[:60]!r}")
        flags = {name: entry.get(name, False) for name in ("special", "lstrip", "rstrip", "single_word")}
        flags["normalized"] = entry.get("normalized", not flags["special"])
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise Malformed(f"a flag of the added token {content[:40]!r} is not true or false")
        check_whole(content)
        return cls(token, content, **flags)

    def rust(self) -> AddedToken:
        """The same for the library."""
        return AddedToken(
            self.content, single_word=self.single_word, lstrip=self.lstrip, rstrip=self.rstrip,
            normalized=self.normalized, special=self.special,
        )  # fmt: skip


class Core:
    """Text to ids and ids to bytes; special tokens are known, but nobody says yet for what they stand."""

    def __init__(self, data: Any, added: Sequence[Added], where: str) -> None:
        self.where = where  # the file, for messages
        model = section(data, "model")
        if model.get("type", "BPE") != "BPE":
            raise Malformed(f"a model of type {str(model.get('type'))[:40]!r} cannot be read, only BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise Malformed(f"model.{key} is set")
        self._vocab = checked_ids(model.get("vocab"))
        self.added = {entry.token: entry for entry in added}
        self._real = self._compact(added)
        self._byte_fallback = model.get("byte_fallback") is True
        self._split = splitting(data)
        self._known = set[str]()  # characters that are certainly in the vocabulary
        self._symbols = {byte: symbol for symbol, byte in BYTE_SYMBOLS.items()}
        vocab = {token: rank for rank, token in enumerate(sorted(self._vocab, key=lambda token: self._vocab[token]))}
        options = {key: model[key] for key in ("unk_token", "fuse_unk", "ignore_merges") if model.get(key) is not None}
        options["byte_fallback"] = self._byte_fallback
        unknown = options.get("unk_token")
        if unknown is not None and not (isinstance(unknown, str) and unknown in vocab):
            raise Malformed("unk_token is not in the vocabulary")
        for key in ("fuse_unk", "ignore_merges", "byte_fallback"):
            if model.get(key) is not None and not isinstance(model[key], bool):
                raise Malformed(f"model.{key} is not true or false")
        merges = read_merges(model.get("merges"), vocab)
        shared = asked(lambda: models.BPE(vocab=vocab, merges=merges, **options))
        self._plain = self._tokenizer(shared, self._split.normalizer, self._split.pre_tokenizer)
        self._bare = self._tokenizer(shared, *self._split.bare) if self._split.prefixed else self._plain
        self._marked = self._tokenizer(shared, self._split.normalizer, self._split.pre_tokenizer)
        self._marked.encode_special_tokens = False
        if self._split.pre_tokenizer is not None:
            with silence():
                asked(lambda: self._plain.encode_batch_fast(list(_TRIALS), add_special_tokens=False))
        self.size = 1 + max([*self._vocab.values(), *self.added], default=-1)
        self._names = {i: name for name, i in self._vocab.items()} | {i: a.content for i, a in self.added.items()}

    def _compact(self, added: Sequence[Added]) -> list[int] | None:
        """Ids of the file by those of the core, which has no holes; None if they are the same.

        The core numbers added tokens itself, behind its vocabulary: it would go wrong where the file has a hole.
        """
        for entry in added:
            if self._vocab.get(entry.content, entry.token) != entry.token:
                raise Malformed(f"added token {entry.content[:40]!r} has two ids")
        outside = sorted(entry.token for entry in added if entry.content not in self._vocab)
        real = [*sorted(self._vocab.values()), *outside]
        if len(set(real)) < len(real) or len({entry.content for entry in added}) < len(added):
            raise Malformed("an id or an added token is given twice")
        return None if real == list(range(len(real))) else real

    def _tokenizer(
        self, model: models.Model, normalizer: Any, pre_tokenizer: Any
    ) -> tokenizers.Tokenizer:  # fmt: skip
        """Assemble a tokenizer of the library; several share one model. Special tokens in its texts stay text."""
        rust = tokenizers.Tokenizer(model)
        if normalizer is not None:
            rust.normalizer = normalizer
        if pre_tokenizer is not None:
            rust.pre_tokenizer = pre_tokenizer
        for entry in sorted(self.added.values(), key=lambda entry: entry.token):
            add = rust.add_special_tokens if entry.special else rust.add_tokens
            add([entry.rust()])
        places = {token: place for place, token in enumerate(self._real)} if self._real else None
        for entry in self.added.values():
            if rust.token_to_id(entry.content) != (places[entry.token] if places else entry.token):
                raise Malformed(f"added token {entry.content[:40]!r} cannot have the id {entry.token}")
        rust.encode_special_tokens = True
        return rust

    def knows(self, token: int) -> bool:
        """True for an id of the vocabulary or of an added token."""
        return token in self._names

    def id_of(self, name: str) -> int | None:
        """Id of a token by its name, None without any."""
        known = next((i for i, entry in self.added.items() if entry.content == name), None)
        return self._vocab.get(name) if known is None else known

    def name(self, token: int) -> str:
        """Name of a token in the file (KeyError for an unknown id)."""
        return self._names[token]

    def bytes_of(self, token: int) -> bytes:
        """Bytes that a token stands for in a text. Errors: IndexError for an unknown id."""
        name = self._names.get(token)
        if name is None:
            raise IndexError(f"token id {token}")
        if token in self.added:
            return name.encode()
        if self._split.byte_level:
            symbols = [BYTE_SYMBOLS.get(character) for character in name]
            return name.encode() if None in symbols else bytes(symbol for symbol in symbols if symbol is not None)
        if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        return (name.replace(SPACE, " ") if self._split.spaced else name).encode()

    def encode(self, texts: Sequence[str], continued: bool = False) -> list[list[int]]:
        """Ids of texts; special tokens that they spell out are text. InputError for a character that has no token."""
        rust = self._bare if continued else self._plain
        with self._refusing():
            for text in texts:
                self._check(rust, text)
            found = asked(lambda: rust.encode_batch_fast(list(texts), add_special_tokens=False))
        return [self._in_file(encoding.ids) for encoding in found]

    def parts(self, text: str) -> list[int | tuple[str, list[int]]]:
        """The special tokens of a text as ids, and what stands between them as (text, ids)."""
        with self._refusing():
            found = asked(lambda: self._marked.encode(text, add_special_tokens=False))
        parts, at = list[int | tuple[str, list[int]]](), 0
        between = list[int]()
        for token, (start, end) in zip(self._in_file(found.ids), found.offsets, strict=True):
            if token in self.added and self.added[token].special:
                parts += [(text[at:start], between), token] if between or start > at else [token]
                between, at = [], end
            else:
                between.append(token)
        parts += [(text[at:], between)] if at < len(text) else []
        for part in parts:
            if not isinstance(part, int):
                self._check(self._marked, part[0])
        return parts

    def prefixes_parts(self) -> bool:
        """True if a space is put in front of the text behind each special token, not only of a whole text."""
        return self._split.each

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what the core says of a text into an InputError."""
        try:
            yield
        except TypeError as exc:  # the library's word for a string that UTF-8 cannot hold
            raise InputError("text holds half of a surrogate pair", todo="give valid Unicode") from exc
        except Malformed as fault:
            raise InputError(f"tokenizer cannot encode a text ({fault})", self.where) from fault

    def _in_file(self, ids: list[int]) -> list[int]:
        real = self._real
        return ids if real is None else [real[i] for i in ids]

    def _check(self, rust: tokenizers.Tokenizer, text: str) -> None:
        """InputError for a character that the core would drop, or replace by its unknown token."""
        unknown = set(text) - self._known
        if not unknown:
            return
        if rust.normalizer is not None:
            text = rust.normalizer.normalize_str(text)
        for character in sorted({*unknown, *text} - self._known):
            if not self._lacks(character):
                self._known.add(character)
            elif character in text:
                what = f"the tokenizer has no token for {character!r} (U+{ord(character):04X})"
                raise InputError(what, f"{text[:40]!r}", "leave the character out, or take another model")

    def _lacks(self, character: str) -> bool:
        if "\ud800" <= character <= "\udfff":
            return False  # the library refuses it
        data = character.encode()
        if self._split.byte_level:
            return any(self._symbols[byte] not in self._vocab for byte in data)
        symbol = SPACE if self._split.spaced and character == " " else character
        if symbol in self._vocab:
            return False
        return not (self._byte_fallback and all(f"<0x{byte:02X}>" in self._vocab for byte in data))


# ---- checks ------------------------------------------------------------------------------------------------


@contextmanager
def silence() -> Iterator[None]:
    """Send what the process writes to stderr nowhere: the core reports a panic there itself."""
    with suppress(OSError):
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def section(data: Any, name: str) -> dict[str, Any]:
    """An object of a parsed file (Malformed)."""
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, dict):
        raise Malformed(f"{name} is not an object")
    return found


def checked_ids(vocab: Any) -> dict[str, int]:
    """A vocabulary whose ids are distinct and whose tokens are not empty; it may have holes."""
    if not isinstance(vocab, dict) or not vocab:
        raise Malformed("vocab is not an object with tokens")
    if any(type(i) is not int or not 0 <= i < LARGEST_ID for i in vocab.values()):
        raise Malformed("an id of vocab is not a whole number from 0")
    if len(set(vocab.values())) < len(vocab) or "" in vocab:
        raise Malformed("an id of vocab is given twice, or a token is empty")
    check_whole("\n".join(vocab))
    return vocab


def check_whole(tokens: str) -> None:
    """Refuse tokens with half of a surrogate pair, which an escape of JSON can spell (Malformed)."""
    try:
        tokens.encode()
    except UnicodeEncodeError:
        raise Malformed("a token holds half of a surrogate pair") from None


def read_merges(merges: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs, which older files write as "left right"; each must join tokens of the vocabulary to another."""
    if not isinstance(merges, list):
        raise Malformed("merges is not a list")
    found = list[tuple[str, str]]()
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise Malformed(f"merge {number} is not a pair of tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise Malformed(f"merge {number} has a token that vocab lacks")
        found.append((left, right))
    return found
