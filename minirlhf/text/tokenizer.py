"""Tokenizer: byte-level BPE, trained per corpus by the `tokenizers` library.

Merges are those of Sennrich et al. (2016); the names of bytes and the word pattern are GPT-2's (Radford et al., 2019).
The first three ids are <pad>, <bos>, <eos>. Text never becomes one of them, even if it spells them out: only the
program puts them into a sequence. Every other token is a string of bytes, so any text can be encoded and every sequence
of ids decoded.

`Tokenizer` is also the interface of all tokenizers. Not here: tokenizers of another kind (foreign.py: other special
tokens, normalisers or word patterns), and chat templates (template.py).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# The library's threads do not survive a fork, of which it warns on stderr: off, unless the user set it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from minirlhf.errors import DiskError, InputError
from minirlhf.text.files import parse_json, read_bytes

Conversation = Sequence[Mapping[str, str]]  # messages: {"role", "content"}

SPECIAL: Final = ("<pad>", "<bos>", "<eos>")
MIN_VOCAB: Final = 256 + len(SPECIAL)
FILE: Final = "tokenizer.json"
MAX_FILE_BYTES: Final = 64 * 2**20

# Training time grows with the square of the longest word (36 s for one of 300,000 letters, on one core), so
# training cuts longer ones. Encoding does not need it.
_LONG_WORD: Final = re.compile(r"\S{513}|\s{513}")
_WORD_PIECE: Final = re.compile(r"\s?\S{1,512}|\s{1,512}")


def _byte_symbols() -> dict[str, int]:
    """GPT-2's names of the 256 bytes: a printable byte is its own name, the others are U+0100 and up, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


BYTE_SYMBOLS: Final = _byte_symbols()


class Tokenizer:
    """Converter of text to ids and back; this class is our own kind, and the interface of all kinds.

    start: ids that every text begins with, () for none. eos_id: the id that ends a text in training data; stops: all
    ids that end a response. pad_id: a filler, which may be a stop of a foreign tokenizer, so only a mask says what is
    padding. bos_id: None if there is none. special: names of the ids that are no text. vocab_size: highest id + 1.
    chat: prompts and answers go through a chat template.
    hash: SHA-256 (hex) of tokenizer.json, of a foreign one of all that decides ids. Made by `train_tokenizer`,
    `Tokenizer.load` or `foreign.load_tokenizer`.
    """

    pad_id: int
    bos_id: int | None
    eos_id: int
    start: tuple[int, ...]
    stops: tuple[int, ...]
    special: dict[int, str]
    vocab_size: int
    hash: str
    chat: bool = False

    def __init__(self, content: str, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        self._content = content
        self._rust = _assemble(vocab, merges)
        self._rust.encode_special_tokens = True  # spelt-out special tokens are text
        symbols = sorted(vocab, key=lambda symbol: vocab[symbol])
        self._bytes = [b"" if s in SPECIAL else bytes(BYTE_SYMBOLS[character] for character in s) for s in symbols]
        self.pad_id, bos, self.eos_id = (vocab[symbol] for symbol in SPECIAL)
        self.bos_id, self.start, self.stops = bos, (bos,), (self.eos_id,)
        self.special = {vocab[symbol]: symbol for symbol in SPECIAL}
        self.vocab_size = len(vocab)
        self.hash = hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens. Errors: InputError for half a surrogate pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """`encode` of many texts in one call; continued: each goes on behind another text, which may set its ids."""
        try:
            found = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError as exc:  # the library's word for a string that UTF-8 cannot hold
            raise InputError("text holds half of a surrogate pair", todo="give valid Unicode") from exc
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: special tokens dropped, bytes that are not UTF-8 (half a character) as U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Bytes of a token, maybe half a character; b"" for a special token. Errors: IndexError."""
        if token < 0:
            raise IndexError(f"token id {token}")
        return self._bytes[token]

    def banned(self, vocab_size: int) -> tuple[int, ...]:
        """Ids of a model of this vocabulary size that may never be sampled: unknown ones, PAD, BOS; never a stop."""
        unknown = (i for i in range(vocab_size) if not self.knows(i))
        never = {self.pad_id} if self.bos_id is None else {self.pad_id, self.bos_id}
        return tuple(sorted({*never, *unknown} - set(self.stops)))

    def knows(self, token: int) -> bool:
        """True for an id that the tokenizer has; ids of a foreign one may have holes."""
        return 0 <= token < self.vocab_size

    def beginnings(self, prompts: Sequence[str], spoken: Sequence[Conversation | None] = ()) -> list[list[int]]:
        """Ids of prompts, those of `start` in front; spoken: the conversations that they were, for chat templates."""
        return [[*self.start, *ids] for ids in self.encode_batch(prompts)]

    def prompt_ids(
        self, prompts: Sequence[str], spoken: Sequence[Conversation | None] = (), where: Sequence[str] = ()
    ) -> list[list[int]]:
        """`beginnings` to go on from; where: FILE:LINE of each. Errors: InputError for one without any id."""
        rows = self.beginnings(prompts, spoken)
        for at, row in enumerate(rows):
            if not row:
                what = "the prompt is empty, and the tokenizer begins texts with no token of its own"
                todo = "give a prompt: a model needs a token to go on from"
                raise InputError(what, where[at] if where else "", todo)
        return rows

    def text_ids(self, prompt: str, completion: str, ended: bool, spoken: Conversation | None = None) -> list[int]:
        """Ids of start, prompt and completion, and EOS if the completion ended; the two texts are encoded apart."""
        (before,), (after,) = self.beginnings([prompt]), self.encode_batch([completion], continued=bool(prompt))
        return [*before, *after, *([self.eos_id] if ended else [])]

    def whole_ids(self, prompt: str, completion: str, spoken: Conversation | None = None) -> list[int]:
        """Ids of a prompt and its completion encoded as one text, with what the tokenizer itself adds to a text.

        It is what a reward model of somebody else reads, which knows no border between the two.
        """
        return [*self.start, *self.encode(prompt + completion)]

    def save(self, directory: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json (Hugging Face's layout). Errors: DiskError."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
            **({} if model_max_length is None else {"model_max_length": model_max_length}),
            "clean_up_tokenization_spaces": False,  # else transformers decodes " ." as "."
        }
        files = {FILE: self._content, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
        write_files(Path(directory), {name: content.encode() for name, content in files.items()})

    @staticmethod
    def load(directory: str | os.PathLike[str]) -> "Tokenizer":
        """Read the tokenizer.json that `save` wrote.

        The file is checked here before the library sees it: a crafted one makes its Rust core panic. Only the
        checked vocabulary and merges reach the core, nothing else of the file. Errors: InputError.
        """
        path = Path(directory) / FILE
        try:
            content = read_bytes(path, MAX_FILE_BYTES).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InputError("tokenizer is not UTF-8", str(path)) from exc
        data = parse_json(content, str(path))
        try:
            return Tokenizer(content, *_checked(data))
        except Malformed as fault:
            todo = "take one that minirlhf wrote"
            raise InputError(f"tokenizer cannot be used ({fault})", str(path), todo) from fault


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files of these names and contents into a directory. Errors: DiskError."""
    for name, content in files.items():
        path = directory / name
        try:
            path.write_bytes(content)
        except OSError as exc:
            raise DiskError(f"cannot be written ({exc.strerror})", str(path)) from exc


def text_ids(
    tokenizer: Tokenizer, prompt: str, completion: str, ended: bool, spoken: Conversation | None = None, where: str = ""
) -> list[int]:
    """Ids of [BOS] prompt completion, and EOS if the completion ended; prompt and completion are encoded apart.

    where: FILE:LINE of a row to learn from, whose prompt must have an id. Errors: InputError if it has none.
    """
    if where and not prompt:
        tokenizer.prompt_ids([prompt], [spoken], [where])
    return tokenizer.text_ids(prompt, completion, ended, spoken)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on the texts: <pad>, <bos>, <eos>, 256 bytes, merges of pairs seen at least twice.

    Deterministic. A small corpus gives fewer tokens than `vocab_size`. Errors: InputError if that is below 259.
    """
    if vocab_size < MIN_VOCAB:
        what = f"vocabulary of {vocab_size} is too small"
        raise InputError(what, "tokenizer.vocab_size", f"256 bytes and 3 special tokens need {MIN_VOCAB}")
    rust = _assemble({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(BYTE_SYMBOLS),
    )
    rust.train_from_iterator(_pieces(texts), trainer)
    rust.post_processor = _bos_first(SPECIAL.index("<bos>"))
    content = rust.to_str(pretty=True) + "\n"
    return Tokenizer(content, *_checked(json.loads(content)))


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if _LONG_WORD.search(text):
            yield from _WORD_PIECE.findall(text)
        else:
            yield text


def _bos_first(bos_id: int) -> processors.TemplateProcessing:
    """Setting for transformers: begin a text with <bos>, as every sequence here does (`encode` leaves it out)."""
    return processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos_id)])


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rust.decoder = decoders.ByteLevel()
    if vocab:
        rust.add_special_tokens(list(SPECIAL))
    return rust


# ---- reading a tokenizer.json that anyone may have written -------------------------------------------------


class Malformed(Exception):
    """Fault of a tokenizer's file: a sentence that the refusal puts in brackets."""


def _section(data: Any, name: str, kind: str) -> dict[str, Any]:
    section = data.get(name) if isinstance(data, dict) else None
    if not isinstance(section, dict) or section.get("type") != kind:
        raise Malformed(f"{name} is not of type {kind}")
    return section


def _checked(data: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a parsed tokenizer.json, or Malformed."""
    model = _section(data, "model", "BPE")
    words = _section(data, "pre_tokenizer", "ByteLevel")
    _section(data, "decoder", "ByteLevel")
    _section(data, "post_processor", "TemplateProcessing")
    if words.get("add_prefix_space") is not False or words.get("use_regex") is not True:
        raise Malformed("pre_tokenizer adds a prefix space or has another word pattern")
    other = [key for key in ("normalizer", "truncation", "padding") if data.get(key) is not None]
    other += [key for key in _OFF if model.get(key)]
    if other:
        raise Malformed(f"{other[0]} is set")
    vocab = _checked_vocab(model.get("vocab"))
    added = data.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise Malformed("added_tokens is not a list of objects")
    named = [[token.get("content"), token.get("id")] for token in added]
    if named != [[name, vocab[name]] for name in SPECIAL]:
        raise Malformed(f"added_tokens are not {' '.join(SPECIAL)} with their ids")
    return vocab, _checked_merges(model.get("merges"), vocab)


_OFF: Final = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)


def _checked_vocab(vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise Malformed("vocab is not an object")
    if any(type(i) is not int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise Malformed("the ids of vocab are not 0 to size - 1, each once")
    missing = [symbol for symbol in (*SPECIAL, *BYTE_SYMBOLS) if symbol not in vocab]
    if missing:
        raise Malformed(f"vocab lacks {missing[0]!r}")
    if "" in vocab:
        raise Malformed("vocab holds an empty token")
    strange = [symbol for symbol in vocab if symbol not in SPECIAL and not BYTE_SYMBOLS.keys() >= set(symbol)]
    if strange:
        raise Malformed(f"token {strange[0][:40]!r} is not made of byte symbols")
    return vocab


def _checked_merges(merges: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise Malformed("merges is not a list")
    checked = list[tuple[str, str]]()
    for number, pair in enumerate(merges):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise Malformed(f"merge {number} is not a pair of tokens")
        left, right = pair
        for token in (left, right, left + right):
            if token not in vocab or token in SPECIAL:
                raise Malformed(f"merge {number} has {token[:40]!r}, which is no ordinary token of vocab")
        checked.append((left, right))
    if len(set(checked)) < len(checked):
        raise Malformed("a merge is given twice")
    return checked
