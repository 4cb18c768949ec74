"""Readers, splits and openings. Expected values are written out by hand or follow from an identity."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from minirlhf.errors import InputError
from minirlhf.text import corpus, files
from minirlhf.text.corpus import Document, Prompt, read_documents, read_prompts
from minirlhf.text.tokenizer import Tokenizer, train_tokenizer


def put(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(source: str, errors: str = "strict") -> list[str]:
    return [document.text for document in read_documents(source, errors)]


def refusal(source: str, errors: str = "strict") -> str:
    with pytest.raises(InputError) as caught:
        read_documents(source, errors)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---- plain text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one", ["one"]),
        ("a", ["a"]),
        ("\n\n one \ntwo\n\n\n", ["one", "two"]),  # blank lines around the text separate nothing
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("one\n \t\ntwo\n\n\n\nthree\nfour", ["one", "two", "three\nfour"]),  # a line of spaces is blank
        ("\ufeffone\r\ntwo\r\n", ["one", "two"]),
        ("one\rtwo\r", ["one", "two"]),
        ("one\r\n\r\ntwo\r\nthree", ["one", "two\nthree"]),
        ("one\u2028still one\x0cstill\x85still\ntwo", ["one\u2028still one\x0cstill\x85still", "two"]),
        ("今天天气很好。\n我们去公园。\n", ["今天天气很好。", "我们去公园。"]),
        ("\u3000\u3000一\n二", ["一", "二"]),
    ],
)
def test_text_lines_and_paragraphs(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert texts(put(tmp_path / "a.txt", content)) == expected


def test_a_byte_order_mark_is_never_a_letter(tmp_path: Path) -> None:
    assert texts(put(tmp_path / "a.txt", "\ufeffa\ufeffb\r\n\ufeffc\n\ufeff")) == ["ab", "c"]
    two_files = '\ufeff{"text": "a"}\n\ufeff{"text": "\ufeffb"}\n'
    assert texts(put(tmp_path / "raw.jsonl", two_files)) == ["a", "b"]
    # as escapes, in a name and in a column, too; behind a backslash that is itself escaped there is none
    escaped = r'{"\ufefftext": "\uFEFFa\\ufeff", "tags": ["\ufeffx"]}'
    assert read_documents(put(tmp_path / "b.jsonl", escaped)) == [Document("a\\ufeff", {"tags": ["x"]})]
    assert "file is empty" in refusal(put(tmp_path / "c.txt", "\ufeff\ufeff"))
    assert "'text' is empty" in refusal(put(tmp_path / "d.jsonl", r'{"text": "\ufeff"}'))


def test_large_files_are_read_in_linear_time(tmp_path: Path) -> None:
    assert len(texts(put(tmp_path / "one.txt", "x" * 5_000_000))) == 1
    assert len(texts(put(tmp_path / "many.txt", "x\n" * 50_000 + "\n" * 50_000))) == 50_000
    assert len(texts(put(tmp_path / "long.txt", "x\n" * 50_000 + "\ny"))) == 2


# ---- JSON --------------------------------------------------------------------------------------------------

ROWS = [Document("one", {"label": 1}), Document("two", {"tags": ["a", None], "x": 0.5, "ok": True})]
LINES = '{"text": "one", "label": 1}\n\n{"tags": ["a", null], "x": 0.5, "ok": true, "text": "two"}\n'
ARRAY = '[\n {"text": "one", "label": 1},\n {"tags": ["a", null], "x": 0.5, "ok": true, "text": "two"}\n]\n'


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.JSONL"])
@pytest.mark.parametrize("content", [LINES, ARRAY, "\ufeff" + LINES, ARRAY.replace("\n", "\r\n"), ARRAY[:-2] + "]"])
def test_content_tells_json_lines_from_an_array(tmp_path: Path, name: str, content: str) -> None:
    assert read_documents(put(tmp_path / name, content)) == ROWS


def test_json_text_keeps_its_spaces_and_loses_its_carriage_returns(tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", r'{"text": " a\r\nb\rc ", "raw": "\r\n"}')
    assert read_documents(source) == [Document(" a\nb\nc ", {"raw": "\r\n"})]


@pytest.mark.parametrize(
    ("content", "line", "phrase"),
    [
        ('{"text": "a"}\n{"text": "b"\n{"text": "c"}', 2, "Expecting ',' delimiter"),
        ('{"text": "a"}\n\n"b"', 3, "row is a string, not an object"),
        ('{"text": "a"}\n{"txt": "b", "n": 1}', 2, "no text (its fields: 'txt', 'n')"),
        ('{"text": "a"}\n{"text": 5}', 2, "'text' is a number, not a string"),
        ('{"text": null}', 1, "no text (its fields: none)"),
        ('{"text": [{"role": "user", "content": "hi"}]}', 1, "'text' is a list"),
        ('{"text": "a"}\n{"text": " \\n"}', 2, "'text' is empty"),
        ('{"text": "a", "x": NaN}', 1, "NaN is not JSON"),
        ('{"text": "a", "x": 1e999}', 1, "1e999 is not finite"),
        ('{"text": "a", "x": 1' + "0" * 400 + "}", 1, "is not finite"),
        ('{"text": "a", "x": ' + "9" * 5000 + "}", 1, "invalid JSON"),
        ('{"text": "a", "text": "b"}', 1, "'text' is given twice"),
        ('{"text": "\\ud83d"}', 1, "half of a surrogate pair"),
        ('{"text": "a", "deep": ' + "[" * 100_000 + "}", 1, "nested too deep"),
        ("[" * 100_000, 1, "nested too deep"),
        ('[\n{"text": "a"},\n"b"]', 3, "row is a string"),
        ('[\n{"text": "a"}\n{"text": "b"}]', 3, "expected ',' or ']'"),
        ('[{"text": "a"},\n\n{"text": }]', 3, "Expecting value"),
        ('[{"text": "a"},\n]', 2, "Expecting value"),
        ('[{"text": "a"},\n{"text":\n}]', 3, "Expecting value"),
        ('[{"text": "a"}\n', 2, "expected ',' or ']'"),
        ('[{"text": "a"}]\n{"text": "b"}', 2, "text after the end of the array"),
        ('[{"text": "a"},\n{"text": "b", "x": Infinity}]', 2, "Infinity is not JSON"),
    ],
)
def test_faulty_json_is_refused_with_its_line(tmp_path: Path, content: str, line: int, phrase: str) -> None:
    message = refusal(put(tmp_path / "a.jsonl", content))
    assert f"{tmp_path / 'a.jsonl'}:{line}" in message
    assert phrase in message
    assert len(message) < 500


def test_a_surrogate_pair_is_one_character_and_half_of_one_can_be_replaced(tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "a\\ud83d"}')
    assert texts(source, "replace") == ["\U0001f600", "a\ufffd"]


@pytest.mark.parametrize("content", ["[]", " [\n]\n"])
def test_json_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    assert "holds no row" in refusal(put(tmp_path / "a.json", content))


# ---- files that are no text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "phrase"),
    [
        (b"", None, "file is empty"),
        (b"\xef\xbb\xbf", None, "file is empty"),
        (b"\n\r\n \n", None, "nothing but white space"),
        (b"one\r\ntwo\0\n", 2, "binary"),
        (b"one\rtwo\r\n\xff\n", 3, "invalid UTF-8 (byte 0xff)"),
        ("one\n好".encode()[:-1], 2, "invalid UTF-8 (byte 0xe5)"),
        (gzip.compress(b"some text"), 1, "gzip"),
        ("好".encode("utf-16"), 1, "UTF-16"),
        (b"PK\x03\x04 a.txt", 1, "zip"),
    ],
)
def test_unusable_bytes_are_refused_with_their_line(
    tmp_path: Path, content: bytes, line: int | None, phrase: str
) -> None:
    for name in ("a.txt", "a.jsonl"):
        message = refusal(put(tmp_path / name, content))
        assert phrase in message
        assert (f"{tmp_path / name}:{line}" if line else f"{tmp_path / name}") in message


def test_invalid_utf8_can_be_replaced_but_binary_cannot(tmp_path: Path) -> None:
    source = put(tmp_path / "a.txt", b"one \xff\ntwo")
    assert "corpus.errors" in refusal(source)
    assert texts(source, "replace") == ["one \ufffd", "two"]
    assert "binary" in refusal(put(tmp_path / "b.txt", b"a\0"), "replace")


@pytest.mark.parametrize("kind", ["fifo", "loop", "missing", "device", "unreadable", "nul", "suffix"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    expected = {
        "fifo": "pipe, socket or device",
        "device": "pipe, socket or device",
        "loop": "Too many levels of symbolic links",
        "missing": "No such file",
        "unreadable": "cannot be read",
        "nul": "cannot be read",
        "suffix": "cannot be of kind '.gz'",
    }[kind]
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "unreadable":
        if not Path("/proc/self/mem").exists():
            pytest.skip("needs a file whose reading fails for root too")
        path.symlink_to("/proc/self/mem")
    elif kind == "nul":
        path = tmp_path / "a\0.txt"
    elif kind == "suffix":
        path = tmp_path / "a.txt.gz"
        path.write_bytes(gzip.compress(b"text"))
    message = refusal(str(path))
    assert expected in message
    assert "a" in message.split(":", 1)[1]


# ---- folders -----------------------------------------------------------------------------------------------


def test_a_folder_is_its_usable_files_by_name_one_level_deep(tmp_path: Path) -> None:
    put(tmp_path / "b.txt", "second")
    put(tmp_path / "a.jsonl", '{"text": "first"}')
    put(tmp_path / "c.json", '[{"text": "third"}]')
    put(tmp_path / ".hidden.txt", "no")
    put(tmp_path / "README.md", "no")
    put(tmp_path / "sub" / "d.txt", "no")
    put(tmp_path / "folder.txt" / "e.txt", "no")
    assert texts(str(tmp_path)) == ["first", "second", "third"]


def test_faulty_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "README.md", "no")
    assert "no usable file" in refusal(str(tmp_path))
    put(tmp_path / "a.txt", "yes")
    (tmp_path / "b.txt").symlink_to("b.txt")
    message = refusal(str(tmp_path))
    assert "Too many levels" in message
    assert "b.txt" in message
    (tmp_path / "b.txt").unlink()
    os.mkfifo(tmp_path / "b.txt")
    assert "pipe" in refusal(str(tmp_path))


def test_corpus_hash_follows_content_and_names_not_the_place(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        put(tmp_path / folder / "a.txt", "one")
        put(tmp_path / folder / "b.txt", "two")
    first = files.corpus_hash(str(tmp_path / "x"))
    assert first == files.corpus_hash(str(tmp_path / "y"))
    assert first == hashlib.sha256(b"5 a.txt 3\none5 b.txt 3\ntwo").hexdigest()
    put(tmp_path / "y" / "b.txt", "twp")
    assert files.corpus_hash(str(tmp_path / "y")) != first
    (tmp_path / "x" / "b.txt").rename(tmp_path / "x" / "c.txt")
    assert files.corpus_hash(str(tmp_path / "x")) != first


# ---- prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "query", "question"])
def test_prompt_and_its_aliases(tmp_path: Path, name: str) -> None:
    source = put(tmp_path / "p.jsonl", json.dumps({name: "Why?", "answer": "so", "text": "t"}) + "\n")
    (prompt,) = read_prompts(source)
    assert prompt == Prompt("Why?", {"answer": "so", "text": "t"})
    assert prompt.where == f"{source}:1"


def test_prompts_of_a_text_file_know_their_line(tmp_path: Path) -> None:
    source = put(tmp_path / "p.txt", "\none\ntwo\n\nthree\n")
    assert [(p.text, p.where) for p in read_prompts(source)] == [
        ("one\ntwo", f"{source}:2"),
        ("three", f"{source}:5"),
    ]
    source = put(tmp_path / "q.txt", "\none\ntwo\n")
    assert [p.where for p in read_prompts(source)] == [f"{source}:2", f"{source}:3"]


def test_several_prompt_fields_are_refused(tmp_path: Path) -> None:
    source = put(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"query": "b", "question": "c"}')
    with pytest.raises(InputError, match=r"'query', 'question', which mean the same: .*p\.jsonl:2; keep one"):
        read_prompts(source)


def test_reserved_columns_are_refused_with_their_line(tmp_path: Path) -> None:
    source = put(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "completions": "c"}')
    assert [p.columns for p in read_prompts(source)] == [{"completions": None}, {"completions": "c"}]
    with pytest.raises(InputError, match=r"'completions' is an input of every reward: .*p\.jsonl:2"):
        read_prompts(source, reserved=("prompts", "completions"))


def test_documents_and_prompts_are_told_apart(tmp_path: Path) -> None:
    source = put(tmp_path / "p.jsonl", '{"query": "a"}\n')
    message = refusal(source)
    assert "file of prompts, not of documents" in message
    assert f"{source}:1" in message
    assert "corpus.prompts" in message
    source = put(tmp_path / "t.jsonl", '{"text": "a"}\n')
    with pytest.raises(InputError, match=r"file of documents, not of prompts: .*t\.jsonl:1; .*corpus\.text"):
        read_prompts(source)


# ---- packaged corpora --------------------------------------------------------------------------------------


def test_a_bare_name_is_a_packaged_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, beside = tmp_path / "package", tmp_path / "checkout"
    put(inside / "films" / "text.jsonl", '{"text": "inside"}')
    put(beside / "films" / "text.jsonl", '{"text": "beside"}')
    put(beside / "books" / "text.jsonl", '{"text": "book"}')
    put(beside / "books" / "heldout_prompts.jsonl", '{"prompt": "open"}')
    put(beside / "__pycache__" / "generate.pyc", "no corpus")
    put(tmp_path / "here" / "own" / "a.txt", "mine")
    monkeypatch.setattr(files, "PACKAGED_ROOTS", (inside, beside))
    monkeypatch.chdir(tmp_path / "here")

    assert files.packaged_names() == ["books", "films"]
    assert files.packaged("books") == beside / "books"
    assert texts("films") == ["inside"]
    assert read_prompts("books", which="heldout_prompts") == [Prompt("open")]
    with pytest.raises(InputError, match="'books' has no prompts"):
        read_prompts("books")
    assert "packaged are: books, films" in refusal("nothing")
    assert "(./own)" in refusal("own")
    assert texts("./own") == ["mine"]
    assert "empty" in refusal("")
    assert "no usable file" in refusal(".")  # here, not a corpus named "."


def test_the_real_roots_are_the_package_and_the_checkout() -> None:
    package = Path(files.__file__).parents[1]
    assert package.name == "minirlhf"
    assert list(files.PACKAGED_ROOTS) == [package / "corpora", package.parent / "corpora"]


# ---- splits ------------------------------------------------------------------------------------------------


def by_hash(*items: str) -> list[str]:
    return sorted(items, key=lambda item: hashlib.sha256(item.encode()).hexdigest())


def test_split_documents_takes_the_smallest_hashes() -> None:
    # printf a | sha256sum and so on: a ca97..., b 3e23..., c 2e7d..., d 18ac...
    documents = [Document(text) for text in "abcd"]
    train, held_out = corpus.split_documents(documents, 0.5)
    assert [d.text for d in train] == ["a", "b"]
    assert [d.text for d in held_out] == ["c", "d"]


@pytest.mark.parametrize(
    ("count", "share", "held_out"),
    [
        (2, 0.02, 1),
        (2, 1.0, 1),
        (9, 0.02, 1),
        (10, 0.02, 2),
        (100, 0.02, 20),
        (1000, 0.02, 64),
        (1000, 0.1, 100),
    ],
)
def test_split_documents_sizes(count: int, share: float, held_out: int) -> None:
    documents = [Document(f"text {i}") for i in range(count)]
    train, rest = corpus.split_documents(documents, share)
    assert (len(train), len(rest)) == (count - held_out, held_out)
    assert sorted(d.text for d in train + rest) == sorted(d.text for d in documents)
    again = corpus.split_documents(documents[::-1], share)
    assert [d.text for d in again[1]] == [d.text for d in rest][::-1]


def test_equal_documents_stay_on_one_side() -> None:
    train, held_out = corpus.split_documents([Document(text) for text in "abab"], 0.5)
    assert ["".join(d.text for d in side) for side in (train, held_out)] == ["aa", "bb"]


def test_a_single_document_is_cut_in_two() -> None:
    text = "word " * 20  # 99 characters without the last space; a tenth of them holds two words
    train, held_out = corpus.split_documents([Document(text, {"topic": 1})] * 2, 0.02)
    assert train == [Document(("word " * 18).strip(), {"topic": 1})]
    assert held_out == [Document("word word", {"topic": 1})]
    train, held_out = corpus.split_documents([Document("天" * 10)], 0.02)
    assert [train[0].text, held_out[0].text] == ["天" * 9, "天"]
    with pytest.raises(InputError, match="too short"):
        corpus.split_documents([Document("a")], 0.02)
    with pytest.raises(InputError, match="no document"):
        corpus.split_documents([], 0.02)


def test_split_prompts_holds_out_a_fifth_by_hash() -> None:
    names = [f"prompt {i}" for i in range(51)]
    train, held_out, note = corpus.split_prompts([Prompt(name) for name in [*names, "prompt 0"]])
    assert {p.text for p in held_out} == set(by_hash(*names)[:10])
    assert {p.text for p in train}.isdisjoint(p.text for p in held_out)
    assert len(train) + len(held_out) == 52
    assert note is None
    train, held_out, note = corpus.split_prompts([Prompt(f"{i}") for i in range(10)])
    assert (len(train), len(held_out), note) == (8, 2, None)


def test_under_ten_prompts_serve_as_both_and_the_note_says_so() -> None:
    prompts = [Prompt(f"{i}") for i in [*range(9), 0]]  # ten rows, nine of them distinct
    train, held_out, note = corpus.split_prompts(prompts)
    assert train == held_out == prompts
    assert note is not None
    assert "only 9 distinct prompts" in note


def test_a_text_that_would_swallow_the_corpus_is_not_held_out() -> None:
    """Five texts, one held out: that of the smallest hash, unless it is most of the text, by length or by repeats."""
    first, *others = by_hash("a" * 9, *(f"text {i:04}" for i in range(4)))
    documents = [Document(text) for text in (first, *others)]
    assert [d.text for d in corpus.split_documents(documents, 0.02)[1]] == [first]
    assert [d.text for d in corpus.split_documents([*documents, *documents[:1] * 20], 0.02)[1]] == others[:1]
    whole = next(word for word in (f"{i} " * 200 for i in range(99)) if by_hash(word, *others)[0] == word)
    train, held_out = corpus.split_documents([Document(text) for text in (whole, *others)], 0.02)
    assert [d.text for d in held_out] == others[:1]
    assert whole in {d.text for d in train}


def test_a_prompt_with_most_of_the_rows_is_trained_on() -> None:
    names = by_hash(*(f"prompt {i}" for i in range(12)))
    prompts = [Prompt(name) for name in [*names, *names[:1] * 190]]
    train, held_out, note = corpus.split_prompts(prompts)
    assert {p.text for p in held_out} == set(names[1:3])  # two of twelve, the first of which has 191 of 202 rows
    assert (len(train), note) == (200, None)


# ---- openings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five", ["one two three four"]),
        ("  one  two\nthree four\n five ", ["one  two\nthree four"]),  # the text's own spaces
        ("one two three four", []),
        ("one two three four ", []),
        ("我们去公园玩。", ["我们去公"]),
        ("我们去公", []),
        ("我们看 Star Wars 电影很好看我们看电影", ["我们看"]),  # three characters and a space
        ("I like the word 好 very much", ["I like the word"]),
        ("오늘은 날씨가 아주 좋습니다 정말로", ["오늘은 날씨가 아주 좋습니다"]),  # Korean has spaces
        ("กินข้าวแล้ว", ["กินข้"]),  # a tone mark stays with its consonant
        ("123456789", []),
    ],
)
def test_openings(text: str, expected: list[str]) -> None:
    assert [p.text for p in corpus.openings([Document(text)], 4)] == expected


def test_openings_are_unique_in_order_and_without_columns() -> None:
    documents = [Document("b c d", {"x": 1}), Document("a b c"), Document("b c e", {"x": 2}), Document("b c")]
    assert corpus.openings(documents, 2) == [Prompt("b c"), Prompt("a b")]


# ---- fitting -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return train_tokenizer([], 259)  # a token a byte


def test_fit_prompts_drops_what_is_too_long_and_says_so(letters: Tokenizer) -> None:
    prompts = [Prompt("abcd", where="f:1"), Prompt("abcde", where="f:2"), Prompt("好好", where="f:3")]
    kept, note = corpus.fit_prompts(prompts, letters, 4)
    assert kept == prompts[:1]
    assert note == "2 of 3 prompts exceed 4 tokens and are dropped, the first: f:2 'abcde'"
    assert corpus.fit_prompts(prompts, letters, 6) == (prompts, None)
    with pytest.raises(InputError, match=r"the shortest of 3 has 4 tokens, 3 fit: f:1 'abcd'; raise"):
        corpus.fit_prompts(prompts, letters, 3)
    with pytest.raises(InputError, match="there is no prompt"):
        corpus.fit_prompts([], letters, 3)


def test_fit_prompts_keeps_duplicates_and_says_so(letters: Tokenizer) -> None:
    prompts = [Prompt("a"), Prompt("b"), Prompt("a"), Prompt("a")]
    assert corpus.fit_prompts(prompts, letters, 4) == (prompts, "2 of 4 prompts repeat another and are kept")
