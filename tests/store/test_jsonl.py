"""JSON lines that every reader understands."""

import json
import math

import pytest

from minirlhf.store.jsonl import JsonLines, json_line, read_rows


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
    rows = [{"step": 1, "prompt": "a\u2028b\u2029c\x85d\r\ne"}, {"step": 2}]
    with JsonLines(tmp_path / "rows.jsonl") as file:
        for row in rows:
            file.write(row)
    assert read_rows(tmp_path / "rows.jsonl") == rows
