"""The output of every command at the width of a terminal: nothing sticks out, and nothing is lost."""

import re

import pytest

from minirlhf.cli.bench import print_timing
from minirlhf.cli.compare import Progress, table_lines
from minirlhf.cli.fit import cells
from minirlhf.cli.overoptimise import Curves
from minirlhf.cli.panel import Panel
from minirlhf.cli.printer import Printer, print_evaluation, print_numbers
from tests.cli.calling import done
from tests.cli.test_panel import plain, screen
from tests.studies.test_overoptimise import a_curve, o

WIDTHS = pytest.mark.parametrize("width", [80, 110, 200])
CHINESE = "我喜欢这个茶壶，很好用。" * 12


@pytest.fixture
def terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))


def fits(text, width):
    """The words of a text whose lines fit."""
    sticking = [line for line in text.splitlines() if cells(line) > width]
    assert sticking == []
    return " ".join(text.split())


@WIDTHS
def test_components_and_what_they_are(terminal, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", "")
    whole = done("plugins", "list").out
    monkeypatch.setenv("COLUMNS", str(width))
    assert sorted(fits(done("plugins", "list").out, width).split()) == sorted(whole.split())
    fits(done("plugins", "show", "ppo_clip").out, width)


@WIDTHS
def test_the_tables_and_verdicts_of_the_audit(terminal, width):
    shown = fits(done("audit", "kl", "k1").out, width)
    assert shown.count("in reward") == {80: 3, 110: 2, 200: 2}[width]  # of a folded table twice, and of the verdict
    assert "k1 in loss: nothing; its gradient is 0 in expectation (off by 100%)" in shown


@WIDTHS
def test_completions_of_sample(finished, terminal, width):
    long = ("--temperature", "2", "-n", "3", "--reward", "length", "--max-new-tokens", "60")
    fits(done("sample", finished[0], "the cat is good and " + "my tea was great " * 6, *long).out, width)
    fits(done("sample", finished[0], "the", *long, "--from", "base", "--from", "policy").out, width)


@pytest.mark.parametrize("width", [40, 60])
def test_the_tables_of_an_evaluation_fold_on_a_narrow_terminal(terminal, width, capsys):
    print_numbers([("", "score", "KL, nats", "J"), ("policy", "+0.500", "2.000", "+0.320")], width)
    print_numbers([("a long title of a measure", "reference", "policy"), ("tokens", "123456789.1", "2.0")], width)
    shown = fits(capsys.readouterr().out, width)
    assert "policy +0.500 2.000 +0.320" in shown
    assert re.search(r"tokens 123456789\.1( tokens)? ", shown)


@WIDTHS
def test_an_evaluation(finished, terminal, width, capsys):
    event = finished[1][-1]
    row = {**event["samples"][0], "prompt": CHINESE, "policy": CHINESE}
    exact = {"optimality": 0.5, "objective": 0.1, "best": 0.2, "reward": 0.3, "kl": 0.4, "beta": 0.5, "changed": []}
    print_evaluation({**event, "exact": exact}, [row])
    shown = fits(capsys.readouterr().out, width)
    assert re.sub(r"\s", "", shown).count(CHINESE) == 2
    assert "better on" in shown


@WIDTHS
def test_a_comparison_and_its_long_labels(terminal, width):
    cell = {"mean": 1.0, "ci95": [0.5, 1.5]}
    measures = {"score_gain": cell, "true_score_mean": cell, "kl_nats_per_sequence": cell}
    labels = ["advantage.function=gae ppo.responses_per_prompt=4 kl.coef=0.09", "茶" * 40]
    rows = [{"measures": measures, "failed": {}, "seeds": [0, 1, 2]}] * 2
    shown = fits("\n".join(table_lines(labels, rows, None)), width)
    assert shown.count("+1.000 [+0.500, +1.500]") == 4
    assert labels[0].split()[-1] in shown


@WIDTHS
def test_the_notes_of_a_comparison(terminal, width, capsys):
    event = {
        "judged": {"measure": None},
        "notes": ["all seeds share base and prompts " * 9],
        "page": "p",
        "out_dir": "o",
    }
    Progress([], as_json=False)({"event": "compare_finished", **event})
    assert fits(capsys.readouterr().out, width).count("share base") == 9


@WIDTHS
def test_curves_of_overoptimise_and_timings_of_bench(terminal, width, capsys):
    Curves(as_json=False)({"event": "curve", **o.as_json(a_curve())})
    measured = {"event": "measurement", "workload": "W1", "by": "TRL 1.12.0 with a long name", "what": "iteration"}
    seconds = {"seconds": 1.0, "fastest": 0.5, "slowest": 2.0, "tokens_per_s": 12345.0, "peak_mb": 1234.0}
    print_timing({**measured, **seconds, "floor_seconds": 0.5})
    assert "2.00 x floor" in fits(capsys.readouterr().out, width)


@WIDTHS
def test_lines_of_progress(finished, terminal, width, capsys):
    events = [e for e in finished[1] if e["event"] in ("stage", "step", "pretrain", "run_started")]
    for event in events:
        Printer()(event)
    lines = [line for line in capsys.readouterr().err.splitlines() if " " in line.strip()]  # a path stays whole
    fits("\n".join(lines), width)
    steps = [line for line in lines if line.startswith("  iteration")]
    assert all("kl" in line and "entropy" in line for line in steps)
    assert ["tokens/s" in line for line in steps] == [width > 80] * len(steps)


@WIDTHS
def test_a_line_of_the_panel_is_cut_with_a_mark(finished, width):
    panel = Panel(screen(width))
    started = next(e for e in finished[1] if e["event"] == "run_started")
    panel._on_run_started({**started, "run_dir": f"/{'茶' * 200}"})
    panel._on_sample({"step": 3, "prompt": CHINESE * 9, "tokens": ["a"], "advantages": [1.0], "score": 0.5})
    lines = plain(panel, width)
    assert max(map(cells, lines)) < width
    assert lines[1].endswith("…")
    (prompt,) = [line for line in lines if "我" in line][:1]
    assert prompt.startswith("…")  # its beginning is left out
