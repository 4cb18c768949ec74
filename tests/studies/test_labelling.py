"""The file of a person's answers: lines end at newlines, damage is refused with its line, nobody's answer is lost."""

import json
import re

import pytest

from minirlhf.errors import InputError, UsageError
from minirlhf.studies.labelling import LabelFile, PairToJudge, checked_label
from minirlhf.text.comparisons import read_comparisons
from tests.store.test_jsonl import SEPARATORS


def row(index=0, prompt="p", **changes):
    return {**PairToJudge(index, prompt, " left", " right").judged("left"), **changes}


def written(path, *lines, end="\n"):
    path.write_bytes(end.join([*(json.dumps(line) if isinstance(line, dict) else line for line in lines), ""]).encode())
    return path


@pytest.mark.parametrize("letter", SEPARATORS)
def test_a_row_is_a_line_whatever_its_texts_hold(tmp_path, letter):
    path = tmp_path / "a.jsonl"
    for index in (0, 1):
        file = LabelFile(path)
        assert file.next_index == index
        file.add(row(index, f"I bought{letter} this"))
    assert path.read_bytes().count(b"\n") == 2
    assert len(LabelFile(path).rows) == len(read_comparisons(str(path))[0]) == 2


def test_mark_crlf_and_blank_lines_are_fine_and_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    before = b"\xef\xbb\xbf" + json.dumps(row(4)).encode() + b"\r\n\r\n"
    path.write_bytes(before)
    file = LabelFile(path)
    assert file.next_index == 5
    file.add(row(5))
    assert file.undo() == 5
    assert path.read_bytes() == before
    assert file.undo() == 4
    assert LabelFile(path).rows == []


DAMAGE = {
    "no object": "[1, 2]",
    "no index": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "a negative index": row(-7),
    "a fraction": row(1.9),
    "true": row(True),
    "a huge index": row(10**23),
    "an index that is a text": row("3"),
    "an infinite index": '{"prompt": "p", "chosen": "a", "rejected": "b", "index": 1e400}',
    "no number": '{"prompt": "p", "chosen": "a", "rejected": "b", "index": NaN}',
    "no chosen": {"prompt": "p", "rejected": "b", "index": 0},
    "a side that is a number": row(0, chosen=3),
    "a side that is null": row(0, rejected=None),
    "a probability of 2": row(0, probability=2),
    "half a surrogate pair": row(0, chosen="\ud800"),
    "torn": json.dumps(row())[:-9],
    "deep": "[" * 100_000,
    "a second value": f"{json.dumps(row())} {{}}",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_its_line_and_kept(tmp_path, damage):
    path = written(tmp_path / "a.jsonl", row(0), DAMAGE[damage], row(2))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.jsonl:2"):
        LabelFile(path)
    assert path.read_bytes() == before


def test_what_somebody_else_appended_is_neither_overwritten_nor_undone(tmp_path):
    """Without a lock, or by an editor: what is appended stays, whoever appends next."""
    path = written(tmp_path / "a.jsonl", row(0))
    mine, theirs = LabelFile(path), LabelFile(path)
    for index in (1, 2, 3):
        theirs.add(row(index, "theirs"))
    mine.add(row(1, "mine"))
    assert [(r["prompt"], r["index"]) for r in LabelFile(path).rows] == [
        ("p", 0), ("theirs", 1), ("theirs", 2), ("theirs", 3), ("mine", 1)
    ]  # fmt: skip
    with pytest.raises(UsageError, match="somebody else has changed the file"):
        theirs.undo()
    assert len(LabelFile(path).rows) == 5
    assert mine.undo() == 1
    assert len(LabelFile(path).rows) == 4
    with pytest.raises(UsageError, match="somebody else has changed the file"):
        mine.undo()  # row 0, behind which theirs are
    assert len(LabelFile(path).rows) == 4
    path.unlink()
    with pytest.raises(UsageError, match="somebody else has changed the file"):
        mine.undo()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": None}, "it has no prompt"),
        ({"prompt": ""}, "it has no prompt"),
        ({"chosen": ""}, "chosen is empty"),
        ({"chosen": " b"}, "chosen and rejected are the same"),
        ({"answer": 5}, "its answer is '5', not left, right or tie"),
        ({"answer": "tie"}, "its answer is 'tie', and its probability 1"),
        ({"answer": "left", "probability": 0.5}, "its answer is 'left', and its probability 0.5"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changed, said):
    sound = {"prompt": "p", "chosen": " a", "rejected": " b", "index": 0, "answer": "left"}
    assert checked_label(sound, "f:1") == sound
    with pytest.raises(InputError, match=re.escape(f"not a line of `minirlhf label` ({said}): f:1")):
        checked_label(sound | changed, "f:1")
