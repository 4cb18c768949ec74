"""The corpus `reviews`: the generator makes the committed files, and they are what PROVENANCE.md says."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "corpora" / "reviews"
FILES = ("text.jsonl", "prompts.jsonl", "heldout_prompts.jsonl")


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("ascii").splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return read("text.jsonl")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [row["prompt"] for row in read("prompts.jsonl")]


@pytest.fixture(scope="module")
def heldout() -> list[str]:
    return [row["prompt"] for row in read("heldout_prompts.jsonl")]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reviews_generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_generator_reproduces_the_committed_files_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "generate.py", "--out", tmp_path], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_the_files_are_ascii_and_end_with_a_newline() -> None:
    for name in FILES:
        data = (FOLDER / name).read_bytes()
        assert data.isascii()
        assert data.endswith(b"}\n")
        assert b"\r" not in data
    assert (FOLDER / "text.jsonl").stat().st_size < 7_000_000
    assert "CC0" in (FOLDER / "LICENSE").read_text()


def test_there_are_enough_distinct_reviews_of_several_sentences(rows: list[dict[str, str]]) -> None:
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts) >= 22_000
    sentences = [len(re.findall(r"[.!](?= |$)", text)) for text in texts]
    assert set(sentences) == {2, 3, 4, 5}
    lengths = [len(text.split()) for text in texts]
    assert 28 <= sum(lengths) / len(lengths) <= 36
    assert max(lengths) <= 60


def test_there_are_enough_word_types_and_none_is_rare(rows: list[dict[str, str]]) -> None:
    types = Counter(word for row in rows for word in re.findall(r"[a-z]+", row["text"].lower()))
    assert 600 <= len(types) <= 760
    assert min(types.values()) >= 5


def test_the_hidden_attributes_are_columns_with_their_shares(rows: list[dict[str, str]]) -> None:
    assert all(
        list(row) == ["text", "sentiment", "topic", "specificity", "length_class"] and all(row.values()) for row in rows
    )
    share = {
        column: {value: count / len(rows) for value, count in Counter(row[column] for row in rows).items()}
        for column in ("sentiment", "topic", "specificity", "length_class")
    }
    # 22,500 texts: the standard error of a drawn share is 0.003. "specific" is not drawn but means two details or more.
    assert share["sentiment"] == pytest.approx({"positive": 0.34, "negative": 0.34, "neutral": 0.32}, abs=0.02)
    assert len(share["topic"]) == 12
    assert min(share["topic"].values()) > 0.04
    assert share["specificity"] == pytest.approx({"generic": 0.5, "specific": 0.5}, abs=0.1)
    assert set(share["length_class"]) == {"short", "medium", "long"}
    assert min(share["length_class"].values()) > 0.15
    for row in rows:
        words = len(row["text"].split())
        assert row["length_class"] == ("short" if words < 24 else "medium" if words < 36 else "long")


def test_the_topic_is_in_the_text(rows: list[dict[str, str]]) -> None:
    assert [row["text"] for row in rows if row["topic"] not in row["text"]] == []


def test_articles_fit_the_word_behind_them(rows: list[dict[str, str]]) -> None:
    # An exception either way: a useful one, an hour.
    wrong = re.compile(r"\b([Aa] (?!use)[aeiou]|[Aa]n (?:use|[^aeiou ]))|\b(\w+) \2\b|[{}]|  | [.,!]")
    assert [row["text"] for row in rows if wrong.search(row["text"].replace("an hour", "the hour"))] == []


def test_prompts_are_distinct_and_short(prompts: list[str], heldout: list[str]) -> None:
    assert len(set(prompts)) == len(prompts) >= 3_000
    assert len(set(heldout)) == len(heldout) >= 512
    for prompt in prompts + heldout:
        assert 3 <= len(prompt.split()) <= 7
        assert re.fullmatch(r"[A-Z][a-z]*( [A-Za-z]+)+", prompt), prompt
    for name in ("prompts.jsonl", "heldout_prompts.jsonl"):
        assert all(list(row) == ["prompt", "topic"] and row["topic"] in row["prompt"] for row in read(name))


def beginnings(texts: list[str]) -> set[str]:
    """Every beginning of up to seven words, without the punctuation behind it."""
    return {" ".join(words[:k]).rstrip(".,") for text in texts for words in [text.split(" ", 7)] for k in range(3, 8)}


def test_a_training_prompt_begins_a_review_and_a_heldout_one_begins_none(
    rows: list[dict[str, str]], prompts: list[str], heldout: list[str]
) -> None:
    begun = beginnings([row["text"] for row in rows])
    assert [prompt for prompt in prompts if prompt not in begun] == []
    assert [prompt for prompt in heldout if prompt in begun] == []


def test_no_prompt_of_one_set_is_the_beginning_of_one_of_the_other(prompts: list[str], heldout: list[str]) -> None:
    assert not beginnings(prompts) & set(heldout)
    assert not beginnings(heldout) & set(prompts)


def test_a_heldout_prompt_begins_a_review_of_the_grammar(generator: ModuleType, heldout: list[str]) -> None:
    rng = random.Random(1)
    texts = [generator.write_review(rng, heldout=True)[0]["text"] for _ in range(4_000)]
    assert len(set(heldout) & beginnings(texts)) > 0.5 * len(heldout)


def test_a_prompt_does_not_tell_the_sentiment(rows: list[dict[str, str]], prompts: list[str]) -> None:
    """The reviews that begin with a prompt are good, bad and neutral in the corpus' proportions."""
    known = set(prompts)
    begun = Counter(row["sentiment"] for row in rows if beginnings([row["text"]]) & known)
    total = sum(begun.values())
    assert total > 5_000
    # over 5,000 reviews: the standard error of a share is at most 0.007, that of a difference of two 0.01
    assert begun["positive"] / total == pytest.approx(begun["negative"] / total, abs=0.03)
    assert begun["neutral"] / total > 0.15


def test_another_seed_gives_another_corpus(generator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REVIEWS", "PROMPTS", "HELDOUT_PROMPTS"):
        monkeypatch.setattr(generator, name, 20)
    assert generator.generate(1) == generator.generate(1) != generator.generate(2)
