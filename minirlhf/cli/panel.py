"""The panel: a run drawn on a terminal (stderr) from its events, without tensors, so that no device is waited for.

    with Panel() as panel:      drawn from the first event to the end of the block
        run(..., panel)

Rich draws once a second in a thread of its own: the clock moves during a long iteration, and a signal never interrupts
drawing in the main thread. Not here: the choice of a panel (ui.py), warnings and results (printer.py, above the panel).
"""

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.color import Color
from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.text import Text

from minirlhf import signals
from minirlhf.cli.lines import or_dash, printable, sft_line, stage_line
from minirlhf.cli.printer import Printer
from minirlhf.report.axes import RELATIVE, SHARE

FRAMES = 1  # frames a second; drawing one takes a few milliseconds
BARS = "▁▂▃▄▅▆▇█"
WIDEST, MEASURE = 160, 58  # columns of the panel at most, and of one measure at least
LABEL, VALUE, RANGE = 14, 9, 18  # columns within a measure: its name, its last value, its minimum and maximum
END = "∎"  # stands for the EOS, a last token without text
PROMPT, SAMPLE = 200, 8  # last characters of the prompt shown, and lines of the sample with its legend
# Backgrounds of tokens, behind black letters. Blue and orange can be told apart by the colour-blind.
ZERO, ABOVE, BELOW = (247, 247, 247), (253, 141, 60), (107, 174, 214)
# Event -> (field, label, format). The fields reward/* of `step` are inserted after the score.
MEASURES = {
    "pretrain": [
        ("loss", "loss", "{:.3f}"),
        ("lr", "learning rate", "{:.1e}"),
        ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ],
    "sft": [("loss", "loss", "{:.3f}")],
    "reward_model": [
        ("loss", "loss", "{:.3f}"),
        ("accuracy", "accuracy", "{:.3f}"),
        ("heldout_accuracy", "held-out", "{:.3f}"),
    ],
    "step": [
        ("objective/scores", "score", "{:+.3f}"),
        ("exact/optimality", "optimality F", "{:.3f}"),
        ("objective/kl", "KL, nats", "{:.2f}"),
        ("policy/entropy_avg", "entropy", "{:.3f}"),
        ("kl/coef", "beta", "{:.3g}"),
        ("policy/clipfrac_avg", "clipped", "{:.1%}"),
        ("response/length", "length", "{:.1f}"),
        ("response/eos_rate", "ended", "{:.0%}"),
        ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ],
}


class Panel:
    """Event sink that draws; a context manager, so that the terminal is restored however the block ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.stopping = False  # True once a signal has been recorded, until the step ends
        self._printer, self._lock = Printer(as_json=False), Lock()
        self._live: Live | None = None
        self._started = monotonic()
        self._run: dict[str, Any] = {}  # the event run_started
        self._finished: list[str] = []  # a line for each finished stage
        self._stage: dict[str, Any] = {}
        self._kl_target: float | None = None
        self._steps = 0  # of this stage
        self._ticks: list[tuple[float, int]] = []  # (time, step) of its first and its last event
        self._series: dict[str, tuple[str, list[float]]] = {}  # label -> (format, values)
        self._sample: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._announce, signals.announce = signals.announce, self._stop_announced
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
        signals.announce = self._announce

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        with self._lock:  # frames are drawn by another thread
            getattr(self, f"_on_{kind}", self._on_step if kind in MEASURES else lambda _: None)(event)
        if kind in ("run_finished", "already_finished") or (kind == "reward_model_finished" and not self._run):
            self.close()
        elif self._live is None and kind != "warning":
            self._live = Live(
                console=self.console, get_renderable=self._draw, refresh_per_second=FRAMES, vertical_overflow="crop",
                redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            self._live.start(refresh=True)
        if kind in ("warning", "run_finished", "already_finished", "reward_model_finished"):
            self._printer(event)  # rich moves printed lines above the panel

    def close(self) -> None:
        """Stop drawing; the last frame stays on the terminal, with the cursor below it."""
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):  # the terminal was closed
                live.stop()

    def _stop_announced(self) -> None:
        self.stopping = True  # shown by the next frame: a signal handler must not print

    # ---- events ------------------------------------------------------------------------------------------------

    def _on_run_started(self, e: dict[str, Any]) -> None:
        self._run = e

    def _on_resumed(self, e: dict[str, Any]) -> None:
        self._finished.append(f"resumed     after step {e['step']}" if e["from"] else "resumed     from the beginning")

    def _on_stage(self, e: dict[str, Any]) -> None:
        if e["stage"] == "base" or e.get("reused"):
            self._over(stage_line(e))
            return
        if self._stage:
            self._over(stage_line(self._stage))
        self._stage, self._steps = e, e.get("steps", e.get("iterations", 0))
        self._kl_target = e.get("kl_target", self._kl_target)
        if e["stage"] != "evaluation":
            self._series, self._ticks = {}, []

    def _on_sft_finished(self, e: dict[str, Any]) -> None:
        self._over(f"sft         made: {sft_line(e)}")

    def _on_reward_model_finished(self, e: dict[str, Any]) -> None:
        self._over(f"reward model made: held-out accuracy {or_dash(e['report']['accuracy'])}")

    def _over(self, line: str) -> None:
        self._finished.append(line.split("\n")[0])
        self._stage, self._steps, self._ticks = {}, 0, []

    def _on_sample(self, e: dict[str, Any]) -> None:
        self._sample = e

    def _on_step(self, e: dict[str, Any]) -> None:
        before = e.get("member", 0) * e.get("steps", 0)  # steps of the other members of an ensemble
        if "steps" in e:
            self._steps = e["steps"] * self._stage.get("ensemble", 1)
        self._ticks = [*self._ticks[:1], (monotonic(), before + e["step"])]
        measures = list(MEASURES[e["event"]])
        labels = [name for name in e if name.startswith("reward/") and name.count("/") == 1]
        measures[1:1] = [(name, f"  {printable(name[7:])}", "{:+.3f}") for name in labels]
        for field, what, form in measures:
            if field in e:
                value = math.nan if e[field] is None else e[field]
                self._series.setdefault(what, (form, []))[1].append(value)

    # ---- a frame -----------------------------------------------------------------------------------------------

    def _draw(self) -> Group:
        width, height = self.console.size
        try:
            return Group(*self.frame(width, height))
        except Exception as fault:  # a fault of the panel must not stop the run
            return Group(Text(printable(f"the panel cannot be drawn: {fault!r}"), no_wrap=True))

    def frame(self, width: int, height: int) -> list[Text]:
        """Lines of the panel on a terminal of width columns and height rows; parts that do not fit are left out."""
        width, room = max(1, min(width, WIDEST) - 1), max(1, height - 1)
        with self._lock:
            head, stage, measures = self._head(width), self._progress(width), self._measures(width)
            finished = [Text(line, style="dim") for line in self._finished]
            lines = [*head, *finished, *stage, *([Text()] if measures else []), *measures]
            if len(lines) > room:
                lines = [*head[:1], *stage, *measures][:room]
            sample = self._sample_lines(width, min(SAMPLE, room - len(lines) - 1))
        lines += [Text(), *sample] if sample else []
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="ellipsis")
        return lines

    def _head(self, width: int) -> list[Text]:
        passed, run = clock(monotonic() - self._started), self._run
        if not run:
            return [justified(Text("minirlhf", style="bold"), passed, width)]
        threads = f"{run['threads']} thread{'s' * (run['threads'] != 1)}"
        about = f"  {run['preset']}, seed {run['seed']}, {run['device']}, {threads}"
        title = Text.assemble((f"minirlhf {run['minirlhf']}", "bold"), printable(about))
        return [justified(title, passed, width), Text(printable(run["run_dir"]), style="dim"), Text()]

    def _progress(self, width: int) -> list[Text]:
        """Lines of the current stage: a bar with steps and time left, then its notes."""
        if not self._stage:
            return []
        first, *notes = stage_line(self._stage).split("\n")
        done = self._ticks[-1][1] if self._ticks else 0
        if not self._steps or self._stage["stage"] == "evaluation":
            lines = [Text(first, style="bold")]
        else:
            counted = f" {done:>{len(str(self._steps))}}/{self._steps}"
            left = self._left(done)
            what = Text(first[:12], style="bold")
            room = max(0, width - 12 - len(counted) - 14)
            full = room * done // self._steps
            bar = Text.assemble(("━" * full, "green"), ("─" * (room - full), "dim"))
            lines = [Text.assemble(what, bar, counted, f"{left:>13}")]
            notes = ["; ".join([first[12:], *(note.strip() for note in notes[:1])]), *(n.strip() for n in notes[1:])]
        if self.stopping:
            return [*lines, Text(signals.STOPPING, style="bold reverse")]
        lines += [Text(f"{'':<12}{note}", style="dim") for note in notes]
        return lines

    def _left(self, done: int) -> str:
        """Estimated time of the remaining steps at the mean speed so far; empty before the second step."""
        if not self._ticks or self._ticks[0][1] == done:
            return ""
        (begun, first), (now, _) = self._ticks[0], self._ticks[-1]
        left = (now - begun) / (done - first) * (self._steps - done) - (monotonic() - now)
        return f"{clock(max(0.0, left))} left"

    def _measures(self, width: int) -> list[Text]:
        """Measures of the stage in as many columns as fit, filled column by column."""
        columns = max(1, width // MEASURE)
        cell = (width + 2) // columns - 2
        cells = [self._measure(what, form, values, cell) for what, (form, values) in self._series.items()]
        rows = math.ceil(len(cells) / columns)
        return [Text("  ").join(cells[row::rows]) for row in range(rows)]

    def _measure(self, what: str, form: str, values: Sequence[float], width: int) -> Text:
        """One measure: label, last value, sparkline, and minimum to maximum (for KL its target, if it has one)."""
        ranged = width >= LABEL + VALUE + RANGE + 10
        course = evenly(values, max(0, width - LABEL - VALUE - 2 - RANGE * ranged))
        known = [value for value in values if math.isfinite(value)]
        beside = f"{form.format(min(known))} to {form.format(max(known))}" if known else ""
        if what == "KL, nats" and self._kl_target is not None:
            beside = f"target {form.format(self._kl_target)}"
        largest = max(map(abs, known), default=0.0)
        least = SHARE if form.endswith("%}") else RELATIVE * largest  # as the axes of the report
        name, value = Text(what), form.format(values[-1]) if math.isfinite(values[-1]) else "-"
        name.truncate(LABEL - 1, overflow="ellipsis")
        name.pad_right(LABEL - name.cell_len)
        found = Text.assemble(name, (f"{value:>{VALUE}}", "bold"), "  ", (sparkline(course, least), "cyan"))
        found.truncate(width - RANGE * ranged, pad=True)
        if ranged:
            found.append(f" {beside}", style="dim")
        found.truncate(width, overflow="ellipsis", pad=True)
        return found

    def _sample_lines(self, width: int, rows: int) -> list[Text]:
        """Latest sample: its score, the legend of the colours, and its tokens coloured by advantage."""
        s = self._sample
        if not s or rows < 3:
            return []
        score = "-" if s["score"] is None else f"{s['score']:+.2f}"
        advantages = [a or 0.0 for a in s["advantages"]]
        scale = max((abs(a) for a in advantages if math.isfinite(a)), default=0.0) or 1.0
        title = Text(f"a response of iteration {s['step']}, score {score}   advantage ")
        title.append_text(legend(scale, self.console.no_color))
        prompt = one_line(s["prompt"])
        text = Text().append(prompt if len(prompt) <= PROMPT else f"…{prompt[-PROMPT:]}", style="dim")
        *tokens, last = s["tokens"] or [""]
        for token, advantage in zip([*tokens, last or END], advantages, strict=False):
            text.append(one_line(token), style=token_style(advantage / scale, self.console.no_color))
        lines = list(text.wrap(self.console, width, overflow="fold"))
        if len(lines) > rows - 1:
            lines = [*lines[: rows - 2], Text("…", style="dim")]
        return [title, *lines]


def justified(left: Text, right: str, width: int) -> Text:
    """Line of this width with one text at its left end and one at its right."""
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis", pad=True)
    return left.append(f" {right}", style="dim")


def clock(seconds: float) -> str:
    """Seconds as M:SS, or H:MM:SS from one hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def one_line(text: str) -> str:
    """Text of a model on one line: line breaks as an arrow, other control characters as escapes."""
    return printable(text.replace("\n", "↵"))


def evenly(values: Sequence[float], count: int) -> list[float]:
    """At most `count` of the values, evenly spaced, the last one included."""
    if len(values) <= count:
        return list(values)
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]


def sparkline(values: Sequence[float], least: float = 0.0) -> str:
    """One bar character a value, scaled from minimum to maximum; a space for a value that is not finite.

    least: smallest difference that takes the whole height; a smaller one is drawn around the middle of it.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = max(high - low, least)
    low -= (span - (high - low)) / 2 if math.isfinite(span) else 0.0
    heights = [(v - low) / span if 0 < span < math.inf else 0.5 if math.isfinite(v) else math.nan for v in values]
    return "".join(BARS[int(h * (len(BARS) - 0.01))] if math.isfinite(h) else " " for h in heights)


def token_style(share: float, no_color: bool) -> Style:
    """Background of a token: orange above 0, blue below; share (-1 to 1) is its advantage over the largest one."""
    share = share if math.isfinite(share) else 0.0
    if no_color:
        return Style(bold=share > 0, underline=share < 0)
    end = ABOVE if share > 0 else BELOW
    mixed = (round(zero + (far - zero) * min(1.0, abs(share))) for zero, far in zip(ZERO, end, strict=True))
    return Style.from_color(Color.from_rgb(0, 0, 0), Color.from_rgb(*mixed))


def legend(scale: float, no_color: bool) -> Text:
    """Legend of the token colours, from -scale to +scale."""
    if no_color:
        return Text.assemble(("below 0", token_style(-1, True)), ", ", ("above 0", token_style(1, True)))
    patches = [(" ", token_style(step / 5, False)) for step in range(-5, 6)]
    return Text.assemble(f"{-scale:.2f} ", *patches, f" +{scale:.2f}")
