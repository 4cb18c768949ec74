"""minirlhf inspect: the tokens of one logged response, coloured and as a table. The log is read by report/tokens.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.fit import cells
from minirlhf.cli.lines import printable
from minirlhf.cli.stdio import columns
from minirlhf.store.jsonl import json_line

if TYPE_CHECKING:
    from rich.text import Text

# Columns of the table; on a narrow terminal the last ones are left out first.
SHOWN = ("advantage", "reward", "value", "prob", "logprob", "ref_prob", "ref_logprob", "exact", "ratio", "k1", "k3")
GAP, CLIP, LIKELY = 2, 4, 24  # columns between two of them, of the mark of the clip, at least of the alternatives
PIPE = 176  # columns where stdout is no terminal: all of it


@click.command("inspect")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(1), metavar="N", help="Iteration; left out: the last one logged.")
@click.option("--response", type=click.IntRange(1), default=1, show_default=True, metavar="K", help="Which of them.")
@click.option("--by", metavar="QUANTITY", default="advantage", show_default=True, help="What colours the tokens.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the response with every quantity a token.")
def command(run: Path, step: int | None, response: int, by: str, as_json: bool) -> None:
    """Show what the models thought of one response, token by token: the token view of the report, on a terminal.

    RUN may be going on still. Probabilities, ratio and KL are of the policy after the iteration's update; value, reward
    and advantage are what the update used. As many columns are shown as fit, at best with three likely alternatives.
    probs, all_probs and all_values are the names of the notes (N18).
    """
    row = logged_response(run, step, response)
    check_quantity(by, row)
    if as_json:
        print(json_line(row))
        return

    from rich.console import Console

    console = Console(highlight=False, emoji=False, width=columns() or PIPE)
    score = "no score" if row["score"] is None or row["score"] != row["score"] else f"score {row['score']:+.3f}"
    console.print(f"iteration {row['step']}, response {response}, {score}", markup=False)
    console.print(printable(row["prompt"]), style="dim", markup=False)
    console.print(coloured(row, by))
    table, absent = token_table(row, console.width)
    console.print(table)
    if absent:
        console.print(f"no room in {console.width} columns: {', '.join(absent)}", style="dim", markup=False)


def logged_response(run: Path, step: int | None, response: int) -> dict[str, Any]:
    """Row of the token log for an iteration (None: the last one) and response (from 1); UsageError if there is none."""
    from minirlhf.errors import UsageError
    from minirlhf.report.tokens import read_token_log
    from minirlhf.store.layout import check_run

    check_run(run)
    file = run / "tokens.jsonl"
    rows = read_token_log(file)
    if not rows:
        raise UsageError("no responses are logged", str(file), "run.token_log is how many a run keeps of an iteration")
    steps = sorted({row["step"] for row in rows})
    step = steps[-1] if step is None else step
    if step not in steps:
        near = ", ".join(str(s) for s in sorted(steps, key=lambda s: abs(s - step))[:5])
        raise UsageError(f"iteration {step} is not logged", str(file), f"--step: the nearest are {near}")
    rows = [row for row in rows if row["step"] == step]
    if response > len(rows):
        raise UsageError(f"there is no response {response}", str(file), f"--response: 1 to {len(rows)}")
    return rows[response - 1]


def check_quantity(by: str, row: dict[str, Any]) -> None:
    """Refuse a --by that is no quantity of the token log (UsageError)."""
    from minirlhf.errors import UsageError
    from minirlhf.report.tokens import QUANTITIES

    if by not in QUANTITIES:
        raise UsageError("there is no such quantity", f"--by {by}", f"one of {', '.join(QUANTITIES)}")


def piece(text: str) -> str:
    """Token as the table quotes it; the EOS, which has no text, as <eos>."""
    return repr(printable(text)) if text else "<eos>"


def coloured(row: dict[str, Any], by: str) -> "Text":
    """Completion coloured by a quantity over its largest value: blue below, orange above 0 (1 for a ratio)."""
    from rich.text import Text

    middle = 1.0 if by == "ratio" else 0.0
    values = [None if x is None else x - middle for x in row[by]]
    most = max((abs(x) for x in values if x is not None), default=0.0) or 1.0
    text = Text()
    for token, value in zip(row["tokens"], values, strict=True):
        share = 0.0 if value is None else value / most
        style = "" if abs(share) < 0.1 else f"on {shade(share)}"
        text.append(printable(token), style=style)
    text.append(f"\n{by}: blue down to {middle - most:.3g}, orange up to {middle + most:.3g}", style="dim")
    return text


def shade(share: float) -> str:
    """Background colour: blue at -1, black at 0, orange at 1; letters on it are light."""
    strength = abs(share)
    red, green, blue = (0, 70, 190) if share < 0 else (190, 90, 0)
    return f"rgb({int(red * strength)},{int(green * strength)},{int(blue * strength)})"


def token_table(row: dict[str, Any], width: int) -> tuple[Any, list[str]]:
    """Table with a row a token and as many quantities as fit in `width` columns, at least one; heads of the rest."""
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    last = len(row["tokens"]) - 1
    names = [
        piece(token) if token or (i == last and row.get("terminated")) else "(half a character)"
        for i, token in enumerate(row["tokens"])
    ]
    found.add_column("token\n ", no_wrap=True, max_width=max(8, width // 3))
    room = width - min(max(8, width // 3), max(5, *map(cells, names))) - GAP - CLIP
    numbers = dict[str, list[str]]()
    for key in SHOWN:
        column = [short_number(value) for value in row[key]]
        room -= max(*map(cells, column), *map(cells, heads(key))) + GAP
        if room < 0 and numbers:
            break
        numbers[key] = column
        found.add_column(Text("\n".join(heads(key)), style="bold"), justify="right", no_wrap=True)
    found.add_column("clip\n ", no_wrap=True)
    absent = [heads(key)[0] for key in SHOWN[len(numbers) :]]
    likely = not absent and room - GAP >= LIKELY
    if likely:
        found.add_column("three likeliest: policy (reference)\nall_probs")
    else:
        absent.append("the three likeliest tokens")
    for i, name in enumerate(names):
        held = "held" if isinstance(row["clipped"], list) and row["clipped"][i] else ""
        choices = Text(alternatives(row["likeliest"][i]), no_wrap=True, overflow="ellipsis")
        found.add_row(Text(name), *(column[i] for column in numbers.values()), held, *([choices] if likely else []))
    return found, absent


def heads(key: str) -> tuple[str, str]:
    """Head of a column in two lines: the field's name of a quantity, and the notes' one if they have one."""
    from minirlhf.report.tokens import IN_NOTES, QUANTITIES

    return QUANTITIES[key][0], IN_NOTES.get(key, "")


def short_number(value: float | None) -> str:
    """Number with three decimals, in scientific notation from 1e6, - for none."""
    if value is None or value != value:
        return "-"
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def alternatives(choices: list[list[Any]]) -> str:
    """Three likeliest tokens with their probabilities, policy (reference): ' a' 41% (38%)  ..."""
    from math import exp

    def share(x: float | None) -> str:
        return "0" if x is None else f"{exp(min(x, 0.0)):.0%}"

    return "  ".join(f"{printable(text)!r} {share(p)} ({share(q)})" for text, p, q in choices[:3])
