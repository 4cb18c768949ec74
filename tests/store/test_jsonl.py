"""JSON lines that every reader understands."""

import errno
import json
import math
import os

import pytest

from minirlhf.errors import InputError
from minirlhf.store.jsonl import JsonLines, append_line, cut, edited_rows, json_line, read_rows

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"  # at which str.splitlines ends a line


def test_what_is_not_finite_becomes_null_at_any_depth():
    row = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (math.nan, 2), "e": "NaN", "f": None}
    line = json_line(row)
    assert json.loads(line) == {"a": None, "b": [1.5, None, {"c": None}], "d": [None, 2], "e": "NaN", "f": None}
    assert "NaN" not in line.replace('"NaN"', "")
    assert "Infinity" not in line


@pytest.mark.parametrize("text", ["two\nlines", "\u2028\u2029\x85", "\x1b[31m", '"quotes" \\', "\u4e2d\u6587"])
def test_a_row_is_one_line_and_comes_back(text):
    line = json_line({"text": text})
    assert "\n" not in line
    assert json.loads(line) == {"text": text}


def test_a_line_for_a_stream_is_ascii_and_a_file_holds_letters(tmp_path):
    row = {"text": "\u8336 \U0001f375 \udcff"}  # the last is no UTF-8: a byte of a file name
    assert json_line(row) == r'{"text": "\u8336 \ud83c\udf75 \udcff"}'
    with JsonLines(tmp_path / "rows.jsonl") as rows:
        rows.write(row)
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"text": "\u8336 \U0001f375 \\udcff"}\n'.encode()
    assert read_rows(tmp_path / "rows.jsonl") == [row]


def test_floats_come_back_to_the_bit():
    values = [0.1, 1e-320, 2**-1074, 1.7976931348623157e308, -0.0, 1 / 3]
    assert [v.hex() for v in json.loads(json_line({"x": values}))["x"]] == [v.hex() for v in values]


def test_rows_are_appended_and_each_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as rows:
        rows.write({"step": 1})
        assert path.read_text() == '{"step": 1}\n'
        rows.write({"step": 2})
    with JsonLines(path) as rows:
        rows.write({"step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_value_that_is_not_json_is_our_bug_and_not_half_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as rows, pytest.raises(TypeError):
        rows.write({"x": object()})
    assert path.read_text() == ""


def test_a_line_ends_with_a_newline_and_with_nothing_else(tmp_path):
    """str.splitlines would also break at U+2028, U+2029 and U+0085, which JSON leaves as they are."""
    rows = [{"step": 1, "prompt": "a\u2028b\u2029c\x85d\r\ne"}, {"step": 2, "prompt": f"a{SEPARATORS}b"}]
    with JsonLines(tmp_path / "rows.jsonl") as file:
        for row in rows:
            file.write(row)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_file_that_somebody_changed_is_cut_at_newlines_alone(tmp_path):
    """A lone CR within a line makes it no row of ours; the row behind it is none either, and neither becomes two."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\r\n\n{"step": 9}\r{"step": 1}\n{"step": 2, "x": "\xe2\x80\xa8"}\n')
    assert cut(path, 9999, 2) != []
    assert path.read_bytes() == b'{"step": 1}\r\n{"step": 2, "x": "\xe2\x80\xa8"}\n'


# ---- files that a person may have edited ------------------------------------------------------------------


def test_edited_rows_with_their_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n\xef\xbb\xbf{"b": "\xe2\x80\xa8"}')  # two files put together
    assert list(edited_rows(path)) == [(0, f"{path}:1", {"a": 1}), (18, f"{path}:4", {"b": "\u2028"})]
    path.write_bytes(b"")
    assert list(edited_rows(path)) == []


@pytest.mark.parametrize("line", [b"\xe9", b"[" * 100_000, b'{"x": 1e400}', b'{"x": NaN}', b"{", b"\0"])
def test_an_edited_row_that_is_none_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl:3"):
        list(edited_rows(path))


def test_a_line_is_appended_behind_whatever_is_there(tmp_path):
    path = tmp_path / "a.jsonl"
    assert append_line(path, "a\u2028") == (0, 5)
    assert append_line(path, "b") == (5, 7)
    path.write_bytes(b"no newline")
    assert append_line(path, "c") == (10, 13)
    assert path.read_bytes() == b"no newline\nc\n"


def test_a_line_that_the_disk_does_not_take_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_line(path, "a")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_line(path, "b")
    assert path.read_text() == "a\n"
