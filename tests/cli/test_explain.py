"""minirlhf explain: the sentences of report/explain.py on the screen, in two languages and as JSON."""

import json
import shutil
import sys

import pytest
from rich.cells import cell_len

from minirlhf.cli.explain import page_lines
from minirlhf.report.explain import explain
from tests.cli.calling import done, refused


def test_every_sentence_is_printed_with_the_number_of_its_page(finished):
    out = done("explain", finished[0]).out
    body, legend = " ".join(out.split()).split(" Pages of the manual, in docs/: ")
    said = explain(finished[0])
    numbers = {page: i + 1 for i, page in enumerate(dict.fromkeys(s.page for s in said))}
    assert legend == " ".join(f"[{number}] {page}" for page, number in numbers.items())
    for sentence in said:
        assert f"{' '.join(sentence.text.split())} [{numbers[sentence.page]}]" in body
    assert all(len(line) <= 110 for line in out.split("\n"))
    assert out.startswith("rewarded  ")
    assert "\x1b" not in out


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [60, 80])
def test_it_is_as_wide_as_the_terminal(finished, monkeypatch, language, width):
    monkeypatch.setattr("minirlhf.cli.explain.columns", lambda: width)
    lines = done("explain", finished[0], "--lang", language).out.split("\n")
    widest = max(cell_len(line) for line in lines if str(finished[0]) not in line)
    assert width - 12 < widest <= width


@pytest.mark.parametrize("width", [20, 29])
def test_on_a_narrow_terminal_a_title_has_a_line_of_its_own(finished, monkeypatch, width):
    monkeypatch.setattr("minirlhf.cli.explain.columns", lambda: width)
    title, first, *lines = done("explain", finished[0]).out.split("\n")
    assert (title, first[:5]) == ("rewarded", "tiny,")
    assert max(map(cell_len, lines)) <= width


def test_in_chinese(finished):
    out = done("explain", finished[0], "--lang", "zh").out
    assert out.startswith("奖励      tiny，种子 0：4 次迭代全部完成。 [1]\n")
    assert "手册的页，在 docs/ 里：" in out


def test_as_json_a_line_a_sentence(finished):
    for language in ("en", "zh"):
        events = done("explain", finished[0], "--lang", language, "--json").events
        assert events == [vars(sentence) for sentence in explain(finished[0], language)]
        assert list(events[0]) == ["section", "name", "text", "page"]


def test_a_run_that_goes_on_and_what_is_no_run(finished, tmp_path):
    run = shutil.copytree(
        finished[0], tmp_path / "a run", ignore=shutil.ignore_patterns("evaluation.json", "model", "report.html")
    )
    assert f"`minirlhf run --resume '{run}'`" in " ".join(done("explain", run).out.split())
    refused(2, "explain", tmp_path, said=("there is no run in it", str(tmp_path)))
    refused(2, "explain", tmp_path / "none", said=("there is no run in it",))
    refused(2, "explain", run, "--lang", "fr", said=("--lang", "en", "zh"))
    assert sys.exc_info()[0] is None


def test_text_of_a_model_cannot_steer_the_terminal(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    row = {"prompt": "p", "reference": "\x1b[2J\u202e", "policy": "b", "reference_score": 0.0, "policy_score": 1.0}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    out = done("explain", run).out
    assert "before +0.00: \\x1b[2J\\u202e" in out
    assert "\x1b" not in out


def test_a_page_stays_on_its_line_unless_it_is_wider():
    assert list(page_lines(["Pages:", "[1] a.md", "[2] b.md"], 16)) == ["Pages:  [1] a.md", "[2] b.md"]
    assert list(page_lines(["[1] a.md#abcdefgh"], 10)) == ["[1]", "a.md#abcde", "fgh"]
