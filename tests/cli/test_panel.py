"""--ui: the panel of a terminal, what it looks like and what it leaves; lines in a pipe."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from rich.cells import cell_len
from rich.console import Console

from minirlhf import signals
from minirlhf.cli import panel as module
from minirlhf.cli import ui
from minirlhf.cli.panel import ABOVE, BELOW, END, ZERO, Panel, clock, evenly, legend, sparkline, token_style
from tests.cli.calling import done, event_schema, refused
from tests.manual import blocks, manual

SAMPLE = {"event": "sample", "step": 3, "prompt": "the cat", "tokens": [" is", "", " good", ""], "score": 0.5}
SAMPLE |= {"advantages": [-2.0, None, 0.0, 1.0]}
HOSTILE = ["[bold red]x[/]", "\x1b[2J", "\x1b]0;title\x07", "e\u0301", "日本語" * 9, "a\nb", "\u202e", "\r", "\x9b1A"]


def screen(width=80, height=40, **options):
    options = {"color_system": "truecolor", "force_terminal": True, "_environ": {}} | options
    return Console(file=io.StringIO(), width=width, height=height, **options)


def plain(panel, width=80, height=40):
    return [line.plain for line in panel.frame(width, height)]


def shown(events, **options):
    """A panel that was told these events; nothing is drawn by itself."""
    panel = Panel(screen(**options))
    for event in events:
        event_schema().validate({k: None if v != v else v for k, v in event.items()})
        getattr(panel, f"_on_{event['event']}", panel._on_step)(event)
    return panel


@pytest.fixture
def seen(finished):
    """The events of a run up to its last iteration, with a sample."""
    events = [e for e in finished[1] if e["event"] in ("run_started", "stage", "pretrain", "step")]
    return [*(e for e in events if e.get("stage") != "evaluation"), SAMPLE]


# ---- what is drawn ------------------------------------------------------------------------------------------


def test_it_shows_the_run_the_stages_and_every_measure(seen):
    text, last = plain(shown(seen)), seen[-2]
    assert re.fullmatch(r"minirlhf \S+  tiny, seed 0, cpu, 1 thread +0:0\d", text[0])
    assert text[1] == seen[0]["run_dir"] or text[1].endswith("…")
    (base,) = [line for line in text if line.startswith("base")]
    assert re.match(r"base +(made|reused): [\d,]+ parameters", base)
    (bar,) = [line for line in text if line.startswith("ppo")]
    assert re.match(r"ppo {9}━+ 4/4", bar)
    values = {"score": f"{last['objective/scores']:+.3f}", "KL, nats": f"{last['objective/kl']:.2f}"}
    values |= {"  sentiment": f"{last['reward/sentiment']:+.3f}", "beta": f"{last['kl/coef']:.3g}"}
    values |= {"entropy": f"{last['policy/entropy_avg']:.3f}", "clipped": f"{last['policy/clipfrac_avg']:.1%}"}
    values |= {"length": f"{last['response/length']:.1f}", "ended": f"{last['response/eos_rate']:.0%}"}
    values |= {"tokens/s": f"{last['tokens_per_s']:,.0f}"}
    for what, value in values.items():
        (line,) = [line for line in text if line.startswith(f"{what} ")]
        assert re.match(rf"{what} +{re.escape(value)}  [▁▂▃▄▅▆▇█]{{4}} ", line)
    (kl,) = [line for line in text if line.startswith("KL")]
    assert "target 0.50" in kl
    assert text[-2:] == ["a response of iteration 3, score +0.50   advantage -2.00 " + " " * 11 + " +2.00",
                         f"the cat is good{END}"]  # fmt: skip


def test_the_panel_of_the_manual_has_these_measures(seen):
    (block,) = [b for b in blocks(manual(), "text") if "━" in b]
    measures = r"(?:^|   )( *[a-zA-Z][\w, /]*?)  +[-+\d,.%]+  [▁▂▃▄▅▆▇█]"
    found = [{what.strip() for what in re.findall(measures, text, re.MULTILINE)} for text in (
        block, "\n".join(plain(shown(seen), width=120)),
    )]  # fmt: skip
    assert found[0] == found[1]
    assert len(found[0]) == 9


@pytest.mark.parametrize("width", [1, 40, 80, 160])
@pytest.mark.parametrize("height", [1, 12, 24, 60])
def test_it_fits_any_terminal_whatever_a_model_writes(seen, width, height):
    hostile = {**SAMPLE, "prompt": "".join(HOSTILE), "tokens": HOSTILE, "advantages": [1.0] * len(HOSTILE)}
    labelled = [{**e, "reward/\x1b[2J[bold red]x": 1.0} if e["event"] == "step" else e for e in seen]
    panel = shown([*labelled, hostile], width=width, height=height)
    lines = panel.frame(width, height)
    assert 1 <= len(lines) <= max(1, height - 1)
    assert all(cell_len(line.plain) <= max(1, width - 1) for line in lines)
    assert all(line.plain.isprintable() for line in lines)
    panel.console.print(panel._draw())
    assert len(panel.console.file.getvalue().splitlines()) == len(lines)
    assert not re.search(r"\x1b(?!\[[\d;]*m)|\r|\x07|\x9b", panel.console.file.getvalue())  # colours are all there is
    if width >= 80 and height >= 24:
        text = "".join(line.plain for line in lines)
        for part in ("[bold red]x[/]", "\\x1b[2J", "\\x1b]0;title\\x07", "e\u0301", "a↵b", "\\u202e", "\\r", "\\x9b1A"):
            assert part in text
        assert text.count("日本語") >= 9
    if width >= 40 and height >= 12:
        assert any(line.plain.startswith("score ") for line in lines)


def test_tokens_are_orange_above_zero_and_blue_below_and_white_at_it():
    assert [tuple(token_style(x, False).bgcolor.triplet) for x in (-1, 0, 1, float("nan"))] == [
        BELOW, ZERO, ABOVE, ZERO
    ]  # fmt: skip
    assert tuple(token_style(0.5, False).bgcolor.triplet) == (250, 194, 154)  # halfway from (247, 247, 247)
    panel = shown([SAMPLE])
    panel.console.print(panel._draw())
    drawn = panel.console.file.getvalue()
    assert ";48;2;107;174;214m is" in drawn  # -2 of 2
    assert ";48;2;247;247;247m good" in drawn
    assert f";48;2;250;194;154m{END}" in drawn  # 1 of 2
    assert legend(2, False).plain == "-2.00 " + " " * 11 + " +2.00"


def test_without_colours_the_sign_is_still_seen(seen):
    panel = shown(seen, _environ={"NO_COLOR": "1"})
    panel.console.print(panel._draw())
    drawn = panel.console.file.getvalue()
    assert set(re.findall(r"\x1b\[([\d;]*)m", drawn)) <= {"0", "1", "2", "4", "7"}
    assert "\x1b[4m is" in drawn
    assert f"\x1b[1m{END}" in drawn
    assert "advantage \x1b[4mbelow 0\x1b[0m, \x1b[1mabove 0" in drawn


def test_a_course_is_drawn_from_its_smallest_to_its_largest_value():
    nan = float("nan")
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, nan, -5, 0]) == "█ ▁▄"
    assert sparkline([2, 2]) == "▄▄"
    assert sparkline([nan]) == " "
    assert sparkline([1e308, -1e308, 0]) == "▄▄▄"  # their distance is no number
    assert sparkline([]) == ""
    # One response of 128 that did not end is 0.008 of a span of 0.1: 0.46 and 0.54 of the height, no cliff.
    assert sparkline([1, 127 / 128, 1], least=0.1) == "▅▄▅"
    assert sparkline([0, 7], least=1) == "▁█"
    assert evenly([1, 2, 3, 4, 5, 6], 3) == [2, 4, 6]
    assert evenly([1, 2], 3) == [1, 2]
    assert evenly([1, 2], 0) == []
    scores = [-9.0, *range(9), *range(200)]  # more than there are columns: the bars are of some, the range is of all
    panel = shown([{"event": "step", "step": 1, "iterations": 1, "objective/scores": s / 200} for s in scores])
    (line,) = [line for line in plain(panel) if line.startswith("score")]
    assert re.fullmatch(r"score +\+0.995  [▁▂▃▄▅▆▇█]{36} -0.045 to \+0.995 *", line)
    assert [clock(s) for s in (0, 65.9, 3665)] == ["0:00", "1:05", "1:01:05"]


def test_every_stage_has_a_bar_and_the_time_that_is_left(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: times[-1])
    panel = shown([{"event": "stage", "stage": "pretrain", "documents": 9, "steps": 50}])
    assert re.fullmatch(r"pretrain {4}─+  0/50 {13}", plain(panel)[1])
    for step in (10, 20):
        times.append(float(step))
        panel._on_step({"event": "pretrain", "step": step, "steps": 50, "loss": 3.5, "lr": 1e-3, "tokens_per_s": 9.0})
    times.append(25.0)  # a step a second: 30 are left, and 5 of their seconds are over
    assert re.fullmatch(r"pretrain {4}━+─+ 20/50 {4}0:25 left", plain(panel)[1])
    assert any(re.match(r"loss +3.500  ▄▄ ", line) for line in plain(panel))
    sizes = {"pairs": 9, "watched": 0, "heldout": 9, "ensemble": 2}
    panel._on_stage({"event": "stage", "stage": "reward_model", "reused": False, **sizes})
    for time, member, step in ((30.0, 0, 10), (50.0, 1, 10)):
        times.append(time)
        told = {"event": "reward_model", "member": member, "step": step, "steps": 20, "loss": 0.7, "accuracy": 0.5}
        panel._on_step(told)
    text = plain(panel)  # of an ensemble the steps of all: 20 of them took 20 seconds
    (bar,) = [line for line in text if line.startswith("reward model")]
    assert re.fullmatch(r"reward model━+─+ 30/40 {4}0:10 left", bar)
    assert not any("learning rate" in line for line in text)  # of the stage before


# ---- on a terminal ------------------------------------------------------------------------------------------


def test_warnings_stay_above_it_the_result_comes_below_and_the_terminal_is_given_back(seen, finished, capsys):
    stderr, console = sys.stderr, screen()
    with Panel(console) as panel:
        panel(seen[0])
        assert sys.stderr is not stderr
        panel({"event": "warning", "message": "mind \x1b[2J [b]this[/b]"})
        for event in seen[1:]:
            panel(event)
        panel(finished[1][-1])
        assert sys.stderr is stderr
    drawn, out = console.file.getvalue(), capsys.readouterr().out
    assert drawn.count("warning: mind \\x1b[2J [b]this[/b]") == 1
    assert drawn.index("warning: mind") < drawn.rindex("tiny, seed 0") < drawn.rindex("score")
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert "held-out prompts" in out
    assert "held-out prompts" not in drawn


def test_a_fault_in_a_frame_does_not_stop_the_run(seen, monkeypatch):
    monkeypatch.setattr(Panel, "frame", lambda *_: 1 / 0)
    with Panel(screen()) as panel:
        for event in seen:
            panel(event)
    assert "the panel cannot be drawn: ZeroDivisionError" in panel.console.file.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal that is to be stderr (pytest puts its own there before a test)."""
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as file:
        yield file
    os.close(ours)


def test_who_gets_a_panel(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    assert ui.attended()
    for name, value in (("TERM", "dumb"), ("CI", "true"), ("TTY_INTERACTIVE", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not ui.attended(), name
    with monkeypatch.context() as patch:
        patch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)  # a job in the background
        assert not ui.attended()
    with monkeypatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        assert not ui.drawable()
    assert ui.attended()


def test_an_ui_that_cannot_be(tiny, tmp_path):
    refused(2, "run", *tiny, "--ui", "live", said=("a panel needs a terminal",))
    refused(2, "run", *tiny, "--ui", "live", "--json", said=("--json prints events and nothing else: --ui live",))
    refused(2, "run", *tiny, "--ui", "pretty", said=("'pretty' is not one of",))


def test_quiet_says_warnings_and_prints_the_result(tiny, tmp_path):
    result = done("run", *tiny, "--ui", "quiet", "--set", "evaluation.prompts=2000", "--out", tmp_path / "run")
    assert result.out.splitlines()[-1] == str(tmp_path / "run")
    assert all(line.startswith("warning: ") for line in result.err.splitlines())


def test_a_signal_is_answered_by_the_next_frame_and_not_by_a_print(seen, capfd):
    before = signals.announce
    with Panel(screen()) as panel:
        for event in seen:
            panel(event)
        signals.Stop()(signal.SIGTERM, None)
        assert "stopping after this step, with a save; once more: at once" in plain(panel)
    assert signals.announce is before
    assert capfd.readouterr().err == ""


# ---- a run of its own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tiny, finished, tmp_path_factory):
    """A run on a terminal and one in a pipe, both without an end; at once, because a start takes seconds."""
    out = tmp_path_factory.mktemp("two")
    here = Path(__file__).parents[2]
    sets = ("--set", "ppo.iterations=1000000", "--set", "run.checkpoint_every=0")
    often = "from minirlhf.cli import panel, main; panel.FRAMES = 20; main.main()"  # not to wait for whole seconds
    command = [sys.executable, "-c", often, "run", *map(str, tiny), *sets, "--out"]
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {"TERM": "xterm-256color"}
    pipe = subprocess.PIPE
    piped = subprocess.Popen([*command, str(out / "piped")], stdout=pipe, stderr=pipe, text=True, cwd=here,
                             env=environment | {"FORCE_COLOR": "1"})  # fmt: skip
    size = {"dimensions": (40, 100), "encoding": "utf-8", "timeout": 60}
    drawn = pexpect.spawn(command[0], [*command[1:], str(out / "drawn")], env=environment, cwd=here, **size)
    yield drawn, piped
    drawn.close(force=True)
    piped.kill()
    piped.communicate()


def test_the_panel_moves_and_an_interrupt_leaves_the_terminal_as_it_was(two_runs):
    drawn, _ = two_runs
    values = {"score": set(), r"KL, nats": set()}
    drawn.logfile_read = log = io.StringIO()
    while min(map(len, values.values())) < 2:
        for what, found in values.items():
            drawn.expect(rf"{what} +\x1b\[1m +(\S+)\x1b\[0m")
            found.add(drawn.match[1])
    drawn.sendintr()
    drawn.expect("stopping after this step")
    drawn.expect(pexpect.EOF)
    assert drawn.getecho()
    drawn.close()
    assert drawn.exitstatus == 130
    text = log.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b[?1049h" not in text
    assert text.splitlines()[-1].startswith("interrupted; go on with: minirlhf run --resume ")


def test_in_a_pipe_lines_come_as_they_happen_without_escapes(two_runs):
    _, piped = two_runs
    lines = []
    while not lines or "iteration    1/" not in lines[-1]:
        lines.append(piped.stderr.readline())
        assert lines[-1]
    assert piped.poll() is None
    piped.send_signal(signal.SIGTERM)
    out, err = piped.communicate(timeout=60)
    assert piped.returncode == 143
    assert out == ""
    assert "\x1b" not in "".join(lines) + err
