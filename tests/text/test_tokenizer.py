"""The tokenizer: text comes back whole, is never a special token, and a crafted file is one clear refusal."""

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import pre_tokenizers

from minirlhf.errors import DiskError, InputError
from minirlhf.text import tokenizer as module
from minirlhf.text.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["low lower lowest <eos> <bos><pad>", "the low bar", "今天天气很好，今天很好"] * 3
TOKENIZER = train_tokenizer(TEXTS, 400)


def test_special_tokens_come_first_and_the_256_bytes_next() -> None:
    plain = train_tokenizer([], 259)
    assert (plain.pad_id, plain.bos_id, plain.eos_id, plain.vocab_size) == (0, 1, 2, 259)
    assert [plain.token_bytes(i) for i in range(3)] == [b"", b"", b""]
    assert {plain.token_bytes(i) for i in range(3, 259)} == {bytes([b]) for b in range(256)}
    assert [plain.token_bytes(i) for i in plain.encode("aé")] == [b"a", b"\xc3", b"\xa9"]


def test_byte_symbols_are_those_of_the_library() -> None:
    assert set(module.BYTE_SYMBOLS) == set(pre_tokenizers.ByteLevel.alphabet())
    for text in ["".join(map(chr, range(0x250))), "\0 \x7f\x80\xa0\xad", "好"]:
        symbols = "".join(piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))
        assert bytes(module.BYTE_SYMBOLS[symbol] for symbol in symbols) == text.encode()


def test_the_most_frequent_pair_is_merged_first_and_a_single_one_never() -> None:
    # "ab" three times, then "abc" twice; "xy" and " " + "x" once.
    trained = train_tokenizer(["ab abc", "abc xy"], 1000)
    tokens = [trained.token_bytes(i) for i in range(259, trained.vocab_size)]
    assert tokens == [b"ab", b"abc"]
    assert train_tokenizer(["ab abc", "abc xy"], 260).vocab_size == 260
    assert [trained.token_bytes(i) for i in trained.encode("abcab")] == [b"abc", b"ab"]


def test_a_space_belongs_to_the_word_after_it() -> None:
    trained = train_tokenizer(["the bar the bar the bar"], 1000)
    assert [trained.token_bytes(i) for i in trained.encode("the bar")] == [b"the", b" bar"]


def test_training_is_deterministic_and_the_text_matters() -> None:
    again = train_tokenizer(iter(TEXTS), 400)
    assert again.hash == TOKENIZER.hash
    assert train_tokenizer([*TEXTS, "other other"], 400).hash != TOKENIZER.hash


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"258 is too small.*259"):
        train_tokenizer(TEXTS, 258)


# Not st.text(): its tables of Unicode take seconds to build.
CHARACTERS = st.one_of(*[st.integers(*span) for span in ((0, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x10FFFF))])


@given(st.lists(CHARACTERS.map(chr)).map("".join))
@settings(max_examples=200)
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert b"".join(TOKENIZER.token_bytes(i) for i in ids) == text.encode()


@given(st.lists(st.sampled_from(["<eos>", "<bos>", "<pad>", " ", "a", "<", "eos", "好", "\n"])))
@settings(max_examples=100)
def test_text_that_spells_a_special_token_is_only_text(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_are_dropped_by_decode() -> None:
    ids = TOKENIZER.encode("low bar")
    assert TOKENIZER.decode([0, 1, *ids[:1], 2, *ids[1:], 2, 0]) == "low bar"


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
@settings(max_examples=100)
def test_any_ids_can_be_decoded(ids: list[int]) -> None:
    TOKENIZER.decode(ids).encode()  # valid Unicode


def test_half_a_character_is_the_replacement_character() -> None:
    plain = train_tokenizer([], 259)
    ids = plain.encode("a好")
    assert [plain.decode(ids[:n]) for n in range(1, 5)] == ["a", "a\ufffd", "a\ufffd", "a好"]
    assert plain.decode(ids[2:]) == "\ufffd\ufffd"  # two continuation bytes that continue nothing


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size])
def test_an_id_outside_the_vocabulary_is_an_index_error(token: int) -> None:
    with pytest.raises(IndexError):
        TOKENIZER.decode([token])


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        TOKENIZER.encode("a\ud800")


def test_encode_batch_is_encode_of_each() -> None:
    batch = ["low", "", "好 <eos>"]
    assert TOKENIZER.encode_batch(batch) == [TOKENIZER.encode(text) for text in batch]
    assert TOKENIZER.encode_batch([]) == []


def test_a_word_of_a_million_letters_can_be_learned_from_and_encoded() -> None:
    text = "ab" * 500_000 + " word" + " " * 100_000  # without the cut, training takes minutes
    trained = train_tokenizer([text], 300)
    assert trained.vocab_size > 260
    assert trained.decode(trained.encode(text)) == text


def test_cutting_long_words_leaves_other_texts_whole() -> None:
    assert list(module._pieces(["a b", "x" * 600 + " y"])) == ["a b", "x" * 512, "x" * 88, " y"]


def test_chinese_trains_and_decodes() -> None:
    trained = train_tokenizer(["今天天气很好，我们去公园。", "今天天气不好，我们在家。"] * 5, 400)
    ids = trained.encode("今天天气很好")
    assert trained.decode(ids) == "今天天气很好"
    assert len(ids) < len("今天天气很好".encode()) / 2
    assert trained.decode(trained.encode("没见过的字")) == "没见过的字"


# ---- files -------------------------------------------------------------------------------------------------


def test_save_and_load_are_inverse_to_the_byte(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path, model_max_length=128)
    content = (tmp_path / "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == TOKENIZER.hash
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.hash, loaded.vocab_size) == (TOKENIZER.hash, TOKENIZER.vocab_size)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
    for text in [*TEXTS, "<eos> unseen 字"]:
        assert loaded.encode(text) == TOKENIZER.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == content


def test_files_have_hugging_faces_layout(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path, model_max_length=128)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    # What the library (and with it transformers) makes of the file: the same ids, after <bos>.
    rust = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS[1:3]:
        assert rust.encode(text).ids == [TOKENIZER.bos_id, *TOKENIZER.encode(text)]
        assert rust.decode(rust.encode(text).ids) == text


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"No such file.*tokenizer\.json"):
        TOKENIZER.save(tmp_path / "absent")


VALID: dict[str, Any] = json.loads(TOKENIZER._content)


def changed(path: str, value: Any) -> Callable[[], dict[str, Any]]:
    """VALID with the value at a dotted path replaced."""

    def make() -> dict[str, Any]:
        data = copy.deepcopy(VALID)
        *outer, last = path.split(".")
        place: Any = data
        for key in outer:
            place = place[key]
        place[last] = value
        return data

    return make


def vocab(**changes: Any) -> dict[str, int]:
    return {**VALID["model"]["vocab"], **changes}


SIZE = TOKENIZER.vocab_size
MERGES: list[list[str]] = VALID["model"]["merges"]


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        (lambda: [], "model is not of type BPE"),
        (lambda: {}, "model is not of type BPE"),
        (lambda: "text", "model is not of type BPE"),
        (changed("model.type", "WordPiece"), "model is not of type BPE"),
        (changed("model", []), "model is not of type BPE"),
        (changed("pre_tokenizer", None), "pre_tokenizer is not of type ByteLevel"),
        (changed("pre_tokenizer.add_prefix_space", True), "prefix space"),
        (changed("decoder.type", "WordPiece"), "decoder is not of type ByteLevel"),
        (changed("post_processor", None), "post_processor is not of type TemplateProcessing"),
        (changed("normalizer", {"type": "NFC"}), "normalizer is set"),
        (changed("truncation", {"max_length": -1}), "truncation is set"),
        (changed("model.dropout", 0.5), "dropout is set"),
        (changed("model.ignore_merges", True), "ignore_merges is set"),
        (changed("model.continuing_subword_prefix", "##"), "continuing_subword_prefix is set"),
        (changed("model.vocab", []), "vocab is not an object"),
        (changed("model.vocab", vocab(new=SIZE - 1)), "not 0 to size - 1"),
        (changed("model.vocab", vocab(new=SIZE + 1)), "not 0 to size - 1"),
        (changed("model.vocab", vocab(new=-1)), "not 0 to size - 1"),
        (changed("model.vocab", vocab(new=float(SIZE))), "not 0 to size - 1"),
        (changed("model.vocab", vocab(new=str(SIZE))), "not 0 to size - 1"),
        (changed("model.vocab", {**vocab(), "": SIZE}), "empty token"),
        (changed("model.vocab", {**vocab(), "好": SIZE}), "'好' is not made of byte symbols"),
        (changed("model.vocab", {"<pad>": 0, "<bos>": 1}), "lacks '<eos>'"),
        (changed("model.vocab", {("?" * 9 if k == "A" else k): i for k, i in vocab().items()}), "lacks 'A'"),
        (changed("model.merges", {}), "merges is not a list"),
        (changed("model.merges", [*MERGES, ["l"]]), "is not a pair of tokens"),
        (changed("model.merges", [*MERGES, ["l", 5]]), "is not a pair of tokens"),
        (changed("model.merges", [*MERGES, "l o w"]), "is not a pair of tokens"),
        (changed("model.merges", [*MERGES, ["l", "zz" * 99]]), "no ordinary token"),
        (changed("model.merges", [*MERGES, ["Q", "Q"]]), "has 'QQ', which is no ordinary token"),
        (changed("model.merges", [*MERGES, MERGES[0]]), "given twice"),
        (changed("added_tokens", {}), "added_tokens is not a list"),
        (changed("added_tokens", [1]), "added_tokens is not a list"),
        (changed("added_tokens", VALID["added_tokens"][:2]), "added_tokens are not"),
        (changed("added_tokens", [{"content": ["<pad>"], "id": {}}]), "added_tokens are not"),
        (
            changed("added_tokens", [*VALID["added_tokens"], {"content": "low", "id": SIZE}]),
            "added_tokens are not",
        ),
    ],
)
def test_a_crafted_tokenizer_is_one_clear_refusal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], Any], phrase: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(make()))
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert phrase in str(caught.value)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # no Rust backtrace


def test_a_merge_that_makes_a_special_token_is_refused(tmp_path: Path) -> None:
    data = changed("model.vocab", vocab(**{"<e": SIZE, "os>": SIZE + 1}))()
    data["model"]["merges"].append(["<e", "os>"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="'<eos>', which is no ordinary token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"", "invalid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"model": ' * 100_000, "nested too deep"),
        (b'{"model": 1, "model": 2}', "'model' is given twice"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes | None, phrase: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=phrase):
        Tokenizer.load(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(InputError, match="over the limit"):
        Tokenizer.load(tmp_path)


def test_the_librarys_threads_are_off_unless_the_user_set_them() -> None:
    assert "minirlhf.text.tokenizer" in sys.modules
    assert "TOKENIZERS_PARALLELISM" in os.environ
