"""Seven thousand texts and numbers as people bring them: conversations, parts, nulls, separators, and values typed.

Each is read as what it is, or refused in one line. The fast share runs by default; all of it by `pytest -m fuzz`.
"""

import json
import math
import re
import shlex
from functools import partial
from random import Random

import pyarrow
import pyarrow.parquet
import pytest

from minirlhf.config.layers import load_config
from minirlhf.config.values import respelled, setting
from minirlhf.errors import ConfigError, InputError, UsageError, UserError
from minirlhf.studies.grid import grid, resolve_cells, variations
from minirlhf.text.chat import typed_prompt
from minirlhf.text.comparisons import read_comparisons, read_demonstrations
from minirlhf.text.corpus import read_documents, read_prompts
from tests.cli.calling import call
from tests.fuzz.mutate import json_of
from tests.fuzz.test_fuzz import quiet, shares, tried  # noqa: F401  # quiet is a fixture that applies by itself

SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\ufeff", "\t", " ", "\\", "\u00a0"]
READERS = {"prompts": read_prompts, "comparisons": read_comparisons, "demonstrations": read_demonstrations}
FIELDS = ("prompt", "query", "question", "completion", "chosen", "rejected", "messages", "text", "topic", "margin")


# ---- conversations -----------------------------------------------------------------------------------------


def random_text(random):
    """A few words and what may stand between and around them."""
    words = random.choices(["tea", "is", "good", "数", "é", "I", "It", "[", "{"], k=random.randint(0, 3))
    return "".join(random.choice(["", *SEPARATORS]) + word for word in words) + random.choice(["", "", *SEPARATORS])


def random_talk(random):
    """A conversation, in one of the forms that there are, or in none."""

    def part():
        return random.choice([{"type": "text", "text": random_text(random)}] * 20 + [{"type": "image_url"}, "a", None])

    def content():
        return random.choice(
            [random_text(random)] * 24 + [[part() for _ in range(random.randint(0, 2))]] * 12 + [None, 3]
        )

    def message(role):
        return {"role": role, "content": content()} | random.choice(
            [{}, {}, {"name": None}, {"tool_calls": [{"a": 1}]}]
        )

    roles = random.choices(["system", "user", "assistant", "tool"], k=random.randint(0, 3))
    return [message(role) for role in [*roles, random.choice(["assistant", "assistant", "user"])]]


def random_row(random):
    """Fields of prompts, demonstrations, comparisons and documents, some null, some of a kind that none should be."""
    forms = (
        ("prompt",),
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
        ("prompt", "completion"),
        ("messages",),
    )
    row = {}
    begun = random_talk(random)
    for name in (*random.choice(forms), *random.sample(FIELDS, random.choice([0, 0, 0, 1]))):
        talk = begun + random_talk(random) if random.random() < 0.3 else random_talk(random)
        row[name] = talk if name == "messages" or random.random() < 0.5 else random_text(random) or "a"
    for name in random.sample(FIELDS, random.choice([0, 1, 2])):
        row.setdefault(name, None)
    return row


def written(folder, rows, random):
    """A file of these rows, in a form that can hold them."""
    kind = random.choice(["jsonl", "jsonl", "escaped", "array", "parquet"])
    if kind == "parquet":
        names = {name for row in rows if isinstance(row, dict) for name in row}
        try:
            table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
            pyarrow.parquet.write_table(table, folder / "rows.parquet")
            return folder / "rows.parquet"
        except (pyarrow.ArrowException, AttributeError, TypeError, ValueError, OverflowError, UnicodeError):
            kind = "jsonl"  # a column of a table has one type
    lines = [json.dumps(row, ensure_ascii=kind == "escaped") for row in rows]
    mark = random.choice(["", "\ufeff"])
    text = "[" + ",\n".join(lines) + "]" if kind == "array" else "".join(f"{mark}{line}\n" for line in lines)
    (folder / "rows.json").write_text(text, encoding="utf-8", errors="surrogatepass", newline="\n")
    return folder / "rows.json"


def escaped(file, rows):
    """A file of these rows, all of it ASCII."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def outcome(reader, file):
    """(fault, rows) of a reader on a file."""
    fault, found = tried(InputError, reader, str(file), "replace")
    assert fault is None or str(file) in fault, fault
    return fault, found[0] if isinstance(found, tuple) else found


@shares(40, 3_000)
def test_random_conversations_are_one_text_for_every_reader_or_refused_with_their_place(tmp_path, count):
    random, read, agreed = Random(6), 0, 0
    for _ in range(count):
        rows = [random_row(random) for _ in range(random.randint(1, 2))]
        rows = json_of(rows, random) if random.random() < 0.2 else rows
        rows = rows if isinstance(rows, list) else [rows]
        file = written(tmp_path, rows, random)
        fault, documents = outcome(read_documents, file)
        assert fault or all("\ufeff" not in d.text and d.text.strip() for d in documents)
        found = {name: outcome(reader, file) for name, reader in READERS.items()}
        for _, values in found.values():
            for value in values or ():
                read += 1
                for name in ("text", "prompt", "completion", "chosen", "rejected"):
                    getattr(value, name, "").encode()  # no lone surrogate
                assert "\ufeff" not in repr(value)
        prompts = {p.where: p.text for p in found["prompts"][1] or ()}
        assert not prompts or len(prompts) == len(rows)  # no separator ends a row
        for value in [*(found["comparisons"][1] or ()), *(found["demonstrations"][1] or ())]:
            if value.where in prompts:
                agreed += 1
                assert value.prompt == prompts[value.where]
        plain = [{k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row for row in rows]
        with_nulls, without = (outcome(read_prompts, escaped(tmp_path / "again.json", part)) for part in (rows, plain))
        assert with_nulls == without
        for row in rows:
            talk = row.get("prompt") if isinstance(row, dict) else row
            tried(InputError, typed_prompt, json.dumps(talk), "PROMPT")
    assert read > count / 2
    assert agreed > count / 8


@shares(40, 1_000)
def test_a_line_of_text_ends_at_a_line_end_and_nowhere_else(tmp_path, count):
    random, file = Random(7), tmp_path / "a.txt"
    for _ in range(count):
        lines = [f"a{random_text(random)}b" for _ in range(random.randint(1, 4))]
        file.write_text(random.choice(["\n", "\r\n", "\r"]).join(lines), encoding="utf-8", newline="")
        fault, found = outcome(read_documents, file)
        assert fault is None
        assert [document.text for document in found] == [line.replace("\ufeff", "") for line in lines]


# ---- values that are typed -------------------------------------------------------------------------------------


def random_number(random):
    """A number as somebody types it, or nearly one."""
    digits = "".join(random.choices("0123456789", k=random.randint(0, 3)))
    more = "".join(random.choices("0123456789_", [9] * 10 + [5], k=random.randint(0, 2)))
    text = (
        random.choice([""] * 6 + ["+", "+", "-", "\u2212"])
        + digits
        + random.choice(["", "_", ".", ".", ".", ".", ",", "/"])
        + more
    )
    text += random.choice([""] * 12 + ["e3", "E-2", "e", "%", "s", "m", "ms"])
    odd = [
        "True",
        "false",
        "None",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "9" * 400,
        "0x10",
        "[1]",
        "{}",
        "\uff15",
        "2026-01-31",
        '"',
    ]
    text = random.choice([text] * 40 + odd)
    around = random.choice([("", "")] * 5 + [(" ", " "), ("\ufeff", ""), ("'", "'"), ('"', '"'), ("", '"')])
    return text.join(around)


KEYS = (
    "ppo.lr", "ppo.iterations", "ppo.score_normalize", "kl.coef", "run.reward_timeout_s", "run.observers", "run.preset",
    "corpus.text", "rewards.sentiment.scale", "rewards.sentiment.weight", "advantage.lam",
)  # fmt: skip


def value_at(config, key):
    """Value of a key, options of components included."""
    section, _, name = key.rpartition(".")
    part = config.rewards[section.partition(".")[2]] if section.startswith("rewards.") else getattr(config, section)
    return part.options[name] if name in getattr(part, "options", {}) else getattr(part, name)


@shares(60, 2_500)
def test_a_typed_value_means_what_it_says_or_the_refusal_shows_how_it_is_written(count):
    random, accepted, shown = Random(8), 0, 0
    for _ in range(count):
        key, text = random.choice(KEYS), random_number(random)
        fault, found = tried(ConfigError, partial(load_config, sets=[f"{key}={text}"]))
        bare = text.replace("\ufeff", "").strip()
        if fault is None:
            accepted += 1
            value = value_at(found[0], key)
            if type(value) in (int, float):
                assert math.isfinite(value)
                assert value == (int(bare, 0) if bare.startswith("0x") else float(bare.replace("_", "")))
                assert "_" not in bare or re.search(r"\d_\d", bare)
            continue
        assert "remove the quotes" not in fault or bare[:1] in "\"'", fault
        if "; write " in fault:
            shown += 1
            option, written = shlex.split(fault.partition("; write ")[2])
            assert option == "--set"
            assert repr(setting(written)) != repr(setting(f"{key}={text}"))
            refused, _ = tried(ConfigError, partial(load_config, sets=[written]))
            assert refused is None or "input should be a valid" not in refused  # of the right type, if out of range
    assert accepted > count / 10
    assert shown > count / 10


@shares(15, 500)
def test_weights_varied_values_and_numbers_of_options_are_typed_alike(count):
    random, accepted = Random(9), 0
    for _ in range(count):
        text = random_number(random)
        fault, found = tried(ConfigError, partial(load_config, rewards=[f"sentiment={text}"]))
        same, also = tried(ConfigError, partial(load_config, sets=[f"rewards.sentiment.weight={text}"]))
        assert (fault is None) == (same is None)
        if fault is None:
            accepted += 1
            assert found[0].rewards["sentiment"].weight == also[0].rewards["sentiment"].weight
        with_list = f"kl.coef={text},{random_number(random)}"
        said, varied = tried(UsageError, variations, [with_list])
        if said is None:
            tried(UserError, partial(resolve_cells, grid(["reviews"], varied), 1, options={}, sets=()))
        respelled(text, random.choice(["number", "integer", "boolean", "string", "list"]))
    assert accepted > count / 10


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.fuzz)])
def test_a_number_of_an_option_is_taken_or_refused_in_one_line(count):
    random = Random(10)
    for _ in range(count):
        result = call("config", "show", "tiny", f"--seed={random_number(random)}")
        assert result.code in (0, 2), result.err
        assert "Traceback" not in result.err
        assert len(result.errors) == len(result.err.splitlines()) == (result.code == 2)
