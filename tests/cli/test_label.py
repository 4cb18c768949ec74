"""`minirlhf label`: answers become lines, undo and skip do what they say, and a file is gone on with."""

import json
import os

import pytest

from minirlhf.cli.lines import printable
from minirlhf.store import lock
from minirlhf.store.lock import locked
from minirlhf.studies import labelling
from minirlhf.text.comparisons import read_comparisons
from tests.cli.calling import call, done, refused


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def label(run, out, answers, *more):
    return done("label", run, "--out", out, *more, stdin="".join(f"{a}\n" for a in answers).encode())


def test_answers_are_lines_that_a_reward_model_can_read(finished, tmp_path):
    out = tmp_path / "pairs.jsonl"
    shown = label(finished[0], out, ["l", "right", "t", "?", "s", "r", "q"])
    assert shown.out.startswith("4 comparisons")
    assert "left, right, tie, skip, undo or quit" in shown.err
    rows = lines(out)
    assert [row["answer"] for row in rows] == ["left", "right", "tie", "right"]
    assert [row["index"] for row in rows] == [0, 1, 2, 4]  # 3 was skipped
    assert rows[2]["probability"] == 0.5
    assert len({row["prompt"] for row in rows}) > 1
    found, notes = read_comparisons(str(out))
    assert len(found) == 4
    assert notes == []
    for row in rows[:2]:
        sides = [printable(row[side].strip()).split() for side in ("chosen", "rejected")]
        left, right = sides if row["answer"] == "left" else sides[::-1]
        printed = " ".join(shown.err.split())
        assert f"left {' '.join(left)} right {' '.join(right)}" in printed


def test_it_goes_on_where_it_stopped_and_the_pairs_are_the_same(finished, tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    label(finished[0], whole, ["l", "r", "l", "t"], "-n", "4")
    label(finished[0], parts, ["l", "r"], "-n", "2")
    label(finished[0], parts, ["l", "t", "q"])
    assert parts.read_text() == whole.read_text()


def test_undo_takes_the_last_line_back_and_shows_its_pair_again(finished, tmp_path):
    out, plain = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    label(finished[0], out, ["u", "l", "l", "u", "r", "q"])
    label(finished[0], plain, ["l", "r", "q"])
    assert out.read_text() == plain.read_text()


def test_undo_after_a_skip_brings_the_skipped_pair_back_and_takes_no_answer(finished, tmp_path):
    out, plain = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    label(finished[0], out, ["l", "r", "s", "u", "t", "q"])
    label(finished[0], plain, ["l", "r", "t", "q"])
    assert out.read_text() == plain.read_text()


def test_a_pair_of_equal_sides_is_passed_over(finished, tmp_path, monkeypatch):
    real = labelling.PairSampler._drawn
    monkeypatch.setattr(labelling.PairSampler, "_drawn", lambda self, at: None if at in (0, 2) else real(self, at))
    out = tmp_path / "a.jsonl"
    label(finished[0], out, ["l", "r", "q"])
    assert [row["index"] for row in lines(out)] == [1, 3]
    monkeypatch.setattr(labelling.PairSampler, "_drawn", lambda self, at: None)
    refused(2, "label", finished[0], "--out", tmp_path / "b.jsonl", said=("are the same, again and again",))
    refused(2, "label", finished[0], "--out", tmp_path / "no" / "b.jsonl", said=("there is no such folder",))


def test_the_end_of_the_input_is_the_end(finished, tmp_path):
    out = tmp_path / "a.jsonl"
    assert label(finished[0], out, ["l"]).out.startswith("1 comparisons")
    assert len(lines(out)) == 1


@pytest.mark.parametrize("side", ["policy", "reference"])
def test_prompts_of_ones_own_and_either_side(finished, tmp_path, side):
    (tmp_path / "p.txt").write_text("my tea\n")
    out = tmp_path / "a.jsonl"
    label(finished[0], out, ["l", "r", "q"], "--prompts", tmp_path / "p.txt", "--from", side)
    assert {row["prompt"] for row in lines(out)} == {"my tea"}


@pytest.mark.parametrize("place", ["the file", "a link to it"])
def test_the_second_of_two_who_label_into_one_file_is_refused_before_a_model_is_opened(
    finished, tmp_path, monkeypatch, place
):
    out = tmp_path / "pairs.jsonl"
    other = tmp_path / "link.jsonl" if place == "a link to it" else out
    if place == "a link to it":
        other.symlink_to(out)
    monkeypatch.setattr("minirlhf.pipeline.saved.open_run", None)
    with locked(tmp_path / ".pairs.jsonl.lock", print):
        refused(2, "label", finished[0], "--out", other, said=(f"another process works here (pid {os.getpid()} on",))
    assert not out.exists()


def test_where_files_cannot_be_locked_there_is_one_warning(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "_warned", set())
    result = label(finished[0], tmp_path / "a.jsonl", ["l", "q"])
    assert result.err.count("warning: files cannot be locked here") == 1
    assert len(lines(tmp_path / "a.jsonl")) == 1


def test_a_damaged_file_is_refused_before_a_model_is_opened(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("minirlhf.pipeline.saved.open_run", None)
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    (tmp_path / "b.jsonl").mkdir()
    refused(2, "label", finished[0], "--out", tmp_path / "a.jsonl", said=("invalid UTF-8 (byte 0xe9)", "a.jsonl:1"))
    refused(2, "label", finished[0], "--out", tmp_path / "b.jsonl", said=("is a folder", "b.jsonl"))


def test_a_file_of_something_else_is_refused_and_kept(finished, tmp_path):
    out = tmp_path / "a.jsonl"
    out.write_text('{"text": "mine"}\n')
    refused(2, "label", finished[0], "--out", out, said=("not a line of `minirlhf label`", "a.jsonl:1"))
    assert out.read_text() == '{"text": "mine"}\n'
    assert call("label", tmp_path, "--out", tmp_path / "b.jsonl").code == 2
