"""minirlhf report and inspect: on a finished run, on one that is going on, and on what is none."""

import json
import math
import shutil

import click
import pytest

from minirlhf.cli.fit import cells
from minirlhf.cli.inspect import SHOWN, heads, logged_response, token_table
from tests.cli.calling import done, refused


def test_a_report_is_made_anew_and_its_place_printed(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "a run")
    (run / "report.html").unlink()
    result = done("report", run)
    assert result.out == f"{run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_it_is_opened_as_a_file(finished, monkeypatch):
    opened = []
    monkeypatch.setattr(click, "launch", lambda url: opened.append(url) or len(opened) - 1)
    assert done("report", finished[0], "--open").err == ""
    assert opened == [(finished[0] / "report.html").as_uri()]
    assert "open the file by hand" in done("report", finished[0], "--open").err


def test_inspect_shows_the_last_iteration_a_line_a_token(finished):
    rows = [json.loads(line) for line in (finished[0] / "tokens.jsonl").read_text().splitlines()]
    last = next(row for row in rows if row["step"] == 4)
    lines = done("inspect", finished[0]).out.splitlines()
    assert lines[0].startswith("iteration 4, response 1, score ")
    head = next(i for i, line in enumerate(lines) if line.startswith("token "))
    assert len(lines) - head - 2 == len(last["tokens"])  # the head has a second line, the names of the notes
    first = lines[head + 2]
    for name in ("logprob", "ref_logprob", "exact", "value", "reward", "advantage"):
        assert f"{last[name][0]:.3f}" in first
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [40, 80, 110])
def test_inspect_names_what_a_narrow_terminal_has_no_room_for(finished, monkeypatch, width):
    table, absent = token_table(logged_response(finished[0], None, 1), width)
    shown = [str(column.header).split("\n")[0] for column in table.columns]
    assert [*shown[1:-1], *absent] == [*(heads(key)[0] for key in SHOWN), "the three likeliest tokens"]
    monkeypatch.setenv("COLUMNS", str(width))
    text = " ".join(done("inspect", finished[0]).out.split())
    assert text.endswith(f" no room in {width} columns: {', '.join(absent)}")
    monkeypatch.delenv("COLUMNS")
    assert "no room" not in done("inspect", finished[0]).out


def test_any_response_of_any_iteration_as_json_with_what_follows_from_it(finished):
    rows = [json.loads(line) for line in (finished[0] / "tokens.jsonl").read_text().splitlines()]
    wanted = [row for row in rows if row["step"] == 2][2]
    (found,) = done("inspect", finished[0], "--step", 2, "--response", 3, "--by", "k3", "--json").events
    assert {name: found[name] for name in wanted} == wanted
    assert found["k1"] == pytest.approx(
        [a - b for a, b in zip(wanted["logprob"], wanted["ref_logprob"], strict=True)], rel=1e-4, abs=1e-9
    )


def test_what_is_not_there_is_said_in_a_line(finished, tmp_path):
    run = finished[0]
    refused(2, "inspect", run, "--step", 9, said=("iteration 9 is not logged", "the nearest are 4, 3, 2, 1"))
    refused(2, "inspect", run, "--response", 99, said=("no response 99", "1 to 4"))
    refused(2, "inspect", run, "--by", "colour", said=("--by colour", "advantage, reward"))
    for command in ("report", "inspect"):
        refused(2, command, tmp_path, said=("there is no run", str(tmp_path)))
    empty = shutil.copytree(run, tmp_path / "run")
    (empty / "tokens.jsonl").unlink()
    refused(2, "inspect", empty, said=("no responses are logged", "run.token_log"))


def test_half_a_surrogate_pair_and_numbers_that_no_run_has(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    row = json.loads((run / "tokens.jsonl").read_text().splitlines()[0])
    row["prompt"], row["value"][0] = "\ud800 :smile:", 1e299
    (run / "tokens.jsonl").write_text(json.dumps(row) + "\n")
    assert done("inspect", run, "--json").events[0]["prompt"] == "\ud800 :smile:"
    out = done("inspect", run).out
    assert "\\ud800 :smile:" in out
    assert " 1e+299 " in out


FEW = "token advantage reward value p log p p ref log p ref clip"
SOME = FEW.replace(" clip", " exact ratio k1 k3 clip")


@pytest.mark.parametrize(
    ("width", "there"),
    [(40, "token advantage reward clip"), (80, FEW), (110, SOME), (200, f"{SOME} three likeliest: policy (reference)")],
)
def test_a_terminal_gets_the_columns_that_fit_and_whole_numbers(finished, tmp_path, monkeypatch, width, there):
    run = shutil.copytree(finished[0], tmp_path / "run")
    row = json.loads((run / "tokens.jsonl").read_text().splitlines()[0])
    row["tokens"], row["prompt"] = ["茶壶", *(" ab" for _ in row["tokens"][1:])], "我喜欢这个茶壶" * 20
    (run / "tokens.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = done("inspect", run).out.splitlines()
    assert max(map(cells, lines)) <= width
    head = next(i for i, line in enumerate(lines) if line.startswith("token "))
    assert " ".join(lines[head].split()) == there
    if width > 40:
        assert lines[head + 1].split()[:3] == ["all_values", "probs", "probs"]
        assert lines[head].index(" value") + 6 == lines[head + 1].index("all_values") + 10  # both end there
        assert lines[head + 2].startswith("'茶壶' ")
        logprob = row["logprob"][0]
        assert f"{math.exp(logprob):.3f}  {logprob:.3f}" in " ".join(lines[head + 2].split()).replace(" ", "  ")
    assert f"{row['advantage'][0]:.3f}" in lines[head + 2]
    assert "…" not in "".join(lines[: head + 2])


def test_text_of_a_model_cannot_steer_the_terminal(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    row = json.loads((run / "tokens.jsonl").read_text().splitlines()[0])
    row["prompt"] = row["tokens"][0] = row["likeliest"][0][0][0] = "\x1b[2J[bold]x[/bold]\n"
    (run / "tokens.jsonl").write_text(json.dumps(row) + "\n")
    out = done("inspect", run).out
    assert "\x1b" not in out
    assert out.count("\\x1b[2J[bold]x[/bold]\\n") == 2  # in the table backslashes are doubled
    assert "\\\\x1b[2J[bold]x[/bold]\\\\n" in out
