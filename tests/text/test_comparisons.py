"""Comparisons: every form that a file may have, rows that teach nothing, refusals with their line."""

import json

import pytest

from minirlhf.errors import InputError
from minirlhf.text.corpus import Comparison, read_comparisons


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
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, 'message without "content"'),
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
