"""Comparisons: every form that a file may have, rows that teach nothing, refusals with their line."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from minirlhf.errors import InputError
from minirlhf.text.comparisons import Comparison, Demonstration, read_comparisons, read_demonstrations
from minirlhf.text.corpus import read_documents, read_prompts


def written(tmp_path, *rows, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return str(path)


@pytest.mark.parametrize("name", ["prompt", "query", "question"])
def test_an_explicit_prompt(tmp_path, name):
    source = written(tmp_path, {name: "How was it?", "chosen": " Fine.", "rejected": " Bad."})
    found, notes = read_comparisons(source)
    assert found == [Comparison("How was it?", " Fine.", " Bad.")]
    assert found[0].where == f"{source}:1"
    assert notes == []


def test_sides_that_hold_the_prompt_again(tmp_path):
    found, _ = read_comparisons(written(tmp_path, {"prompt": "A b", "chosen": "A b c", "rejected": "A b d"}))
    assert found == [Comparison("A b", " c", " d")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is black.", ("The sky is", " blue.", " black.")),
        ("good", "bad", ("", "good", "bad")),
        ("天空是蓝的", "天空是黑的", ("天空是", "蓝的", "黑的")),
        ("same start", "same start and more", ("same", " start", " start and more")),
    ],
)
def test_a_prompt_that_both_sides_begin_with(tmp_path, chosen, rejected, expected):
    found, _ = read_comparisons(written(tmp_path, {"chosen": chosen, "rejected": rejected}))
    assert (found[0].prompt, found[0].chosen, found[0].rejected) == expected


def test_conversations(tmp_path):
    user, good, bad = (
        {"role": r, "content": c} for r, c in [("user", "Hi"), ("assistant", "Hello"), ("assistant", "No")]
    )
    apart = {"prompt": [user], "chosen": [good], "rejected": [bad]}
    whole = {"chosen": [user, good], "rejected": [user, bad]}
    found, _ = read_comparisons(written(tmp_path, apart, whole))
    assert found[0] == Comparison("Hi", "\nHello", "\nNo")
    assert found[1] == found[0]


def test_margin_and_probability_and_json_lines_under_the_name_json(tmp_path):
    row = {"question": "几点了", "chosen": "三点", "rejected": "不知道", "margin": 0.5, "probability": 0.75}
    found, _ = read_comparisons(written(tmp_path, row, row, name="pairs.json"))
    assert [(c.margin, c.probability) for c in found] == [(0.5, 0.75)] * 2
    again, _ = read_comparisons(written(tmp_path, json.dumps([row, row]), name="array.json"))
    assert again == found


def test_rows_that_teach_nothing_are_left_out_and_said(tmp_path):
    fine = {"prompt": "p", "chosen": "a", "rejected": "b"}
    source = written(
        tmp_path,
        fine,
        {**fine, "rejected": "a"},
        {**fine, "chosen": " "},
        {**fine, "rejected": ""},
        {**fine, "rejected": "a"},
    )
    found, notes = read_comparisons(source)
    assert found == [Comparison("p", "a", "b")]
    assert notes == [
        f"{source}:2: chosen and rejected are the same: the row is left out",
        f"{source}:3: chosen is empty: the row is left out",
        f"{source}:4: rejected is empty: the row is left out",
        "and 1 rows more like these",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, r":2: row has no 'rejected'|row has no 'rejected'.*:2"),
        ({"prompt": "p", "rejected": "a"}, "row has no 'chosen'"),
        ({"prompt": "p", "query": "q", "chosen": "a", "rejected": "b"}, "which mean the same"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is a number"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "message 1 of 'chosen' is a string, not an object"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "'margin' is a number outside 0 to inf"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.5},
            "'probability' is a number outside 0 to 1",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "x"}, "'margin' is a string"),
        ("[1]x", "invalid JSON|not an object"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(tmp_path, row, said):
    source = written(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(InputError, match=said) as caught:
        read_comparisons(source)
    assert ":2" in str(caught.value)


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(InputError, match="no comparison to learn from"):
        read_comparisons(written(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "a"}))
    with pytest.raises(InputError, match=r"cannot be read from \.txt"):
        read_comparisons(written(tmp_path, "a line", name="x.txt"))


# ---- demonstrations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "How?", "completion": " Well."}, ("How?", " Well.")),
        ({"query": "How?", "completion": " Well."}, ("How?", " Well.")),
        ({"completion": "Well."}, ("", "Well.")),
        ({"prompt": "The", "completion": "There is one"}, ("The", "There is one")),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi there"}]},
            ("Hi", "\nHi there"),
        ),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yes"}]},
            ("Hi", "\nYes"),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello"},
                ]
            },
            ("Be kind.\nHi", "\nHello"),
        ),
        ({"question": "好吗", "chosen": "很好", "rejected": "不"}, ("好吗", "很好")),
    ],
)
def test_every_form_of_a_demonstration(tmp_path, row, expected):
    source = written(tmp_path, row)
    found, notes = read_demonstrations(source)
    assert [(d.prompt, d.completion) for d in found] == [expected]
    assert (found[0].where, notes) == (f"{source}:1", [])
    assert [d.text for d in read_documents(source)] == ["".join(expected)]


def test_an_empty_completion_teaches_nothing_and_is_said(tmp_path):
    source = written(tmp_path, {"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": " "})
    found, notes = read_demonstrations(source)
    assert found == [Demonstration("p", "a")]
    assert notes == [f"{source}:2: completion is empty: the row is left out"]
    with pytest.raises(InputError, match=r"no demonstration to learn from.*completion is empty"):
        read_demonstrations(written(tmp_path, {"prompt": "p", "completion": ""}))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p"}, "row has no 'completion'"),
        ({"text": "t"}, r"row has no 'completion' \(its fields: 'text'\)"),
        ("3", "row is a number, not an object"),
        ({"prompt": "p", "query": "q", "completion": "a"}, "which mean the same"),
        ({"messages": []}, "'messages' is a list, not a list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a"}], "prompt": "p"}, "a prompt or completion beside it"),
        (
            {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]},
            r"""message 1 of 'messages' has no "content" \(its role: 'user'\)""",
        ),
    ],
)
def test_a_broken_demonstration_is_refused_with_its_line(tmp_path, row, said):
    source = written(tmp_path, {"prompt": "p", "completion": "a"}, row)
    with pytest.raises(InputError, match=said) as caught:
        read_demonstrations(source)
    assert ":2" in str(caught.value)


def test_a_row_with_a_text_is_a_document_whatever_else_it_has(tmp_path):
    rows = {"text": "one", "completion": "two"}, {"text": "three", "messages": "none"}
    assert [d.text for d in read_documents(written(tmp_path, *rows))] == ["one", "three"]
    with pytest.raises(InputError, match=r"completion is empty.*:1"):
        read_documents(written(tmp_path, {"prompt": "p", "completion": " "}))


# ---- Parquet -----------------------------------------------------------------------------------------------


def parquet(tmp_path, rows, name="rows.parquet"):
    path = tmp_path / name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_parquet_is_read_like_json_lines(tmp_path):
    pairs = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5},
        {"prompt": "好吗", "chosen": "很好", "rejected": "不", "margin": None},
        {"prompt": "p", "chosen": "a", "rejected": "a"},
    ]
    source = parquet(tmp_path, pairs)
    found, notes = read_comparisons(source)
    assert found == [Comparison("p", "a", "b", 0.5), Comparison("好吗", "很好", "不")]
    assert notes == [f"{source}:3: chosen and rejected are the same: the row is left out"]
    talk = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}]
    assert read_demonstrations(parquet(tmp_path, talk))[0] == [Demonstration("Hi", "\nYes")]
    prompts = read_prompts(parquet(tmp_path, [{"prompt": "p", "topic": 1}, {"prompt": "q", "topic": None}]))
    assert [(p.text, p.columns) for p in prompts] == [("p", {"topic": 1}), ("q", {"topic": None})]
    assert [d.text for d in read_documents(parquet(tmp_path, [{"text": "one"}, {"text": "two"}]))] == ["one", "two"]


PAIR = {"chosen": "a c", "rejected": "a d"}


@pytest.mark.parametrize(
    ("reader", "rows"),
    [
        (read_prompts, [{"prompt": "p", "question": None, "topic": 1}, {"prompt": "q", "query": None, "topic": None}]),
        (read_prompts, [{"prompt": None, "question": "p"}, {"prompt": "q", "question": None}]),
        (read_prompts, [{"prompt": "p"}, {"prompt": None}]),  # refused, and by the same words
        (read_prompts, [{"prompt": "p", "completions": None}]),
        (read_documents, [{"text": "t", "prompt": None, "chosen": None}, {"text": "u", "prompt": "p", "chosen": None}]),
        (read_documents, [{"text": None, "prompt": "p", "completion": "c"}]),
        (read_comparisons, [{"prompt": None, **PAIR, "margin": None, "gap": None}, {**PAIR, "prompt": "a"}]),
        (read_comparisons, [{"prompt": "p", "chosen": "a", "rejected": None}]),
        (read_demonstrations, [{"messages": None, "prompt": "p", "completion": "c"}]),
        (read_demonstrations, [{"prompt": None, "completion": "c"}, {"prompt": "p", "completion": "c"}]),
    ],
)
def test_null_means_absent_in_json_and_parquet(tmp_path, reader, rows):
    """Both give what the same rows without their null fields give, or the same refusal."""

    def outcome(source):
        try:
            return reader(source, reserved=("completions",)) if reader is read_prompts else reader(source)
        except InputError as fault:
            return str(fault).replace(source, "FILE")

    plain = [{name: value for name, value in row.items() if value is not None} for row in rows]
    expected = outcome(written(tmp_path, *plain, name="plain.jsonl"))
    assert outcome(written(tmp_path, *rows, name="rows.jsonl")) == expected
    array = "[" + ",\n".join(map(json.dumps, rows)) + "]"
    assert outcome(written(tmp_path, array, name="array.json")) == expected
    if reader is read_prompts and not isinstance(expected, str):  # a column of nothing but null is no column
        assert all("completions" not in prompt.columns for prompt in expected)
    assert outcome(parquet(tmp_path, rows)) == expected


def test_a_byte_order_mark_is_no_letter_of_a_column_or_of_its_name(tmp_path):
    rows = [{"\ufeffprompt": "\ufeffp", "tags": ["\ufeffx", None]}]
    assert [(p.text, p.columns) for p in read_prompts(parquet(tmp_path, rows))] == [("p", {"tags": ["x", None]})]
    with pytest.raises(InputError, match=r"column 'prompt' is given twice: .*rows\.parquet; rename one"):
        read_prompts(parquet(tmp_path, [{"\ufeffprompt": "p", "prompt": "q"}]))


def test_what_is_no_parquet_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    whole = (tmp_path / "whole.parquet", parquet(tmp_path, [{"text": "one"}], "whole.parquet"))[0].read_bytes()
    for data in (b"", b"PAR1", whole[:-9], b"{}", whole[:20] + b"\xff" * 30 + whole[50:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"not readable as Parquet.*x\.parquet"):
            read_documents(str(path))
    with pytest.raises(InputError, match="file holds no row"):
        read_documents(parquet(tmp_path, [], "none.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    source = parquet(tmp_path, [{"text": "one"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"Parquet needs pyarrow.*minirlhf\[parquet\]"):
        read_documents(source)
