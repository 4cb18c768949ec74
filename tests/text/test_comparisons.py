"""Comparisons: every form that a file may have, rows that teach nothing, refusals with their line."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.text.comparisons import (
    Comparison,
    Demonstration,
    check_enough,
    hold_out,
    read_comparisons,
    read_demonstrations,
    tell_shared,
)
from minirlhf.text.corpus import read_documents, read_prompts
from tests.helpers import seeded


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
        f"4 of 5 comparisons are left out, {source}:2 (chosen and rejected are the same), "
        f"{source}:3 (chosen is empty), {source}:4 (rejected is empty) and 1 more: they "
        "teach nothing, so mend or remove them"
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, r":2: row has no 'rejected'|row has no 'rejected'.*:2"),
        ({"prompt": "p", "rejected": "a"}, "row has no 'chosen'"),
        ({"prompt": "p", "query": "q", "chosen": "a", "rejected": "b"}, "which mean the same"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is a number"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "message 1 of 'chosen' is a string, not an object"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "'margin' is -1, outside 0 to 1e"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.5},
            "'probability' is 1.5, outside 0 to 1",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "x"}, "'margin' is a string, not a number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e39}, "'margin' is 1e.39, outside 0 to 1e"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "gap": -1e39}, "'gap' is -1e.39, outside -1e"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1' + "0" * 400 + "}", "not finite"),
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


# ---- one fact, one row -------------------------------------------------------------------------------------

GOOD, BAD = " good", " bad"


@pytest.mark.parametrize(
    ("said", "turned"),
    [
        ({}, {"probability": 0}),
        ({"probability": 1.0, "gap": 2.5}, {"probability": 0.0, "gap": -2.5}),
        ({"probability": 0.75, "margin": 0.5}, {"probability": 0.25, "margin": 0.5}),
        ({"probability": 0.5, "gap": 0.25}, {"probability": 0.5, "gap": -0.25}),
    ],
)
def test_a_fact_said_the_other_way_round_is_the_same_row(tmp_path, said, turned):
    one = {"prompt": "It is", "chosen": GOOD, "rejected": BAD, **said}
    other = {"prompt": "It is", "chosen": BAD, "rejected": GOOD, **turned}
    (first, second), notes = read_comparisons(written(tmp_path, one, other))
    assert first == second
    assert notes == []
    if said.get("probability") != 0.5:
        assert (first.chosen, first.probability) == (GOOD, said.get("probability", 1))
        assert (first.margin, first.gap) == (said.get("margin", 0), said.get("gap"))


def test_no_side_of_a_tie_leads_by_a_margin(tmp_path):
    row = {"prompt": "It is", "chosen": GOOD, "rejected": BAD, "probability": 0.5, "margin": 2}
    assert read_comparisons(written(tmp_path, row))[0] == [Comparison("It is", BAD, GOOD, 0.0, 0.5)]


def test_a_demonstration_is_the_likelier_side_and_a_tie_is_none(tmp_path):
    row = {"prompt": "It is", "chosen": BAD, "rejected": GOOD}
    source = written(tmp_path, {**row, "probability": 0.1}, {**row, "probability": 0.5})
    found, notes = read_demonstrations(source)
    assert found == [Demonstration("It is", GOOD)]
    assert [note.partition(":2 ")[2][:33] for note in notes] == ["(neither side is better (a tie)):"]
    assert [d.text for d in read_documents(source)] == ["It is good", "It is bad"]  # language can be learned from both


def test_the_field_that_is_empty_is_named_as_it_stands_in_the_file(tmp_path):
    row = {"prompt": "p", "chosen": " ", "rejected": "b", "probability": 0.1}
    _, notes = read_comparisons(written(tmp_path, row, {**row, "chosen": "a"}))
    assert "chosen is empty" in notes[0]


# ---- splits ------------------------------------------------------------------------------------------------


def by_prompts(rows, share, random):
    """Split by the number of prompts, or of rows if all have one prompt: right where all prompts are equally large."""
    prompts = sorted({row.prompt for row in rows})
    names = [row.prompt for row in rows] if len(prompts) > 1 else list(range(len(rows)))
    groups = prompts if len(prompts) > 1 else names
    order = torch.randperm(len(groups), generator=random).tolist()
    held = {groups[i] for i in order[: min(max(1, round(share * len(groups))), len(groups) - 1)]}
    sides = [(row, name in held) for row, name in zip(rows, names, strict=True)]
    return [row for row, out in sides if not out], [row for row, out in sides if out]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 4])
def test_prompts_of_equal_size_are_divided_by_their_number(size, share):
    for prompts in range(1, 25):
        rows = [Demonstration(f"p{i % prompts}", f"{i}") for i in range(size * prompts)]
        if len(rows) > 1:
            assert hold_out(rows, share, seeded(prompts)) == by_prompts(rows, share, seeded(prompts))


def test_the_packaged_corpus_is_divided_by_the_number_of_prompts_too():
    """Its prompts have up to 13 rows of 6000: too few to swallow anything. The figures of the manual rest on it."""
    comparisons, demonstrations = read_comparisons("reviews")[0], read_demonstrations("reviews")[0]
    for rows in (comparisons, demonstrations, comparisons[:300]):
        assert hold_out(rows, 0.1, seeded()) == by_prompts(rows, 0.1, seeded())


def test_rows_without_a_prompt_are_divided_one_by_one_and_equal_ones_stay_together():
    rows = [Comparison("", f"good {i % 100}", f"bad {i % 100}") for i in range(200)] + [Comparison("p", "a", "b")]
    for seed in range(5):
        learn, held = hold_out(rows, 0.1, seeded(seed))
        assert 18 <= len(held) <= 20  # 10 of 101 groups: of two rows, but for one
        assert not {c.chosen for c in learn} & {c.chosen for c in held}
        shown = [Demonstration("", f"{i}") for i in range(200)] + [Demonstration("p", "a")]
        assert [len(side) for side in hold_out(shown, 0.05, seeded(seed))] == [191, 10]


def test_rows_without_a_prompt_are_held_out_among_those_that_have_one():
    """They are two in five, more than may be held out together: as one group they would never be."""
    rows = [Demonstration("", f"{i}") for i in range(80)] + [Demonstration(f"p{i}", "a") for i in range(120)]
    sides = [hold_out(rows, 0.1, seeded(seed)) for seed in range(5)]
    assert [len(held) for _, held in sides] == [20] * 5
    assert sum(not row.prompt for _, held in sides for row in held) > 10  # 40 of 100, give or take
    assert all(tell_shared(*side, "demonstrations") == [] for side in sides)


def test_two_who_disagree_about_a_pair_are_on_one_side():
    rows = [Comparison("", *(sides if i % 2 else sides[::-1])) for i in range(60) for sides in [(f"a{i // 2}", "b")]]
    learn, held = hold_out(rows, 0.2, seeded())
    assert len(held) == 12
    assert not {c.content for c in learn} & {c.content for c in held}


@pytest.mark.parametrize("most", [120, 200])
def test_a_prompt_with_most_of_the_rows_is_divided_itself_and_that_is_said(most):
    rows = [Comparison("big", f"a{i}", "b") for i in range(most)] + [Comparison("p", f"{i}", "b") for i in range(1, 9)]
    for seed in range(5):
        learn, held = hold_out(rows, 0.1, seeded(seed))
        assert 0.05 * len(rows) <= len(held) <= 0.2 * len(rows)
        assert len(learn) + len(held) == len(rows)
        (note,) = tell_shared(learn, held, "comparisons")
        both = sum(row.prompt in {other.prompt for other in learn} for row in held)
        assert note.startswith(f"{both} of {len(held)} held-out comparisons have a prompt that is trained on as well")


def test_a_large_prompt_stays_in_the_training_where_the_others_have_most_of_the_rows():
    rows = [Comparison("big", f"a{i}", "b") for i in range(90)] + [Comparison(f"p{i}", "a", "b") for i in range(110)]
    for seed in range(5):
        learn, held = hold_out(rows, 0.1, seeded(seed))
        assert len(held) == 11  # a tenth of 111 prompts
        assert sum(row.prompt == "big" for row in learn) == 90
        assert tell_shared(learn, held, "comparisons") == []


def test_at_least_half_is_learned_from_and_one_row_is_held_out_whatever_the_sizes():
    for seed in range(200):
        sizes = torch.randint(1, 40, (2 + seed % 9,), generator=seeded(seed)).tolist()
        rows = [Demonstration("" if i == 3 else f"p{i}", f"{j}") for i, size in enumerate(sizes) for j in range(size)]
        if len(rows) > 1:
            learn, held = hold_out(rows, 0.1, seeded(seed))
            assert len(held) >= 1
            assert len(learn) >= len(rows) / 2


def test_rows_that_are_all_the_same_cannot_be_divided():
    rows = [Comparison("p", "a", "b"), Comparison("p", "b", "a")]
    check_enough([*rows, Comparison("q", "a", "b")], "x.jsonl")
    with pytest.raises(InputError, match=r"the same texts, in 2 rows, cannot be learned from and held out: x\.jsonl"):
        check_enough(rows, "x.jsonl")


def test_equal_rows_on_both_sides_of_a_split_of_ones_own_are_said():
    one, two = Comparison("p", "a", "b"), Comparison("q", "c", "d")
    (note,) = tell_shared([one], [Comparison("p", "b", "a"), two], "comparisons")
    assert note.startswith("1 of 2 held-out comparisons are trained on as well")
    assert tell_shared([one], [two], "comparisons") == []


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
    assert "1 of 2 demonstrations are left out" in notes[0]
    assert f"{source}:2 (completion is empty)" in notes[0]
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
    (note,) = notes
    assert f"{source}:3 (chosen and rejected are the same)" in note
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


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("It is nice", "I hate it", ""),  # no word in common: a prompt "I" would tear the token of "It"
        ("blue is good", "boot is bad", ""),
        ("It is nice", "It was bad", "It"),
        ("我喜欢它", "我讨厌它", "我"),  # a script without spaces
    ],
)
def test_a_prompt_that_was_not_given_ends_at_the_end_of_a_word(tmp_path, chosen, rejected, prompt):
    ((row,), _) = read_comparisons(written(tmp_path, {"chosen": chosen, "rejected": rejected}))
    assert row.prompt == prompt
    assert (row.prompt + row.chosen, row.prompt + row.rejected) == (chosen, rejected)
