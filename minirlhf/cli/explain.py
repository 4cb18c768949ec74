"""minirlhf explain: the explanation of a run (report/explain.py), wrapped and printed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minirlhf.cli.lines import printable
from minirlhf.cli.stdio import columns

if TYPE_CHECKING:
    from minirlhf.report.explain import Said

LABEL = 10  # columns of a section's title
NARROWEST = 20  # columns that a sentence gets at least beside it; if there are fewer the title has a line of its own
LEAST = 8  # columns that a sentence gets, however narrow the terminal is
WIDE = "\u3000-\u303f\u3400-\u9fff\uff00-\uffef"  # Chinese letters and marks
# A letter of a script without spaces, or a word; with the spaces and the closing marks behind it. `a -> b` is one word.
PIECE = re.compile(rf"(?:[{WIDE}]|[^\s{WIDE}]+(?: -> [^\s{WIDE}]+)?|\s)[，。；：、）》」]* *")
PAGES = {"en": "Pages of the manual, in docs/:", "zh": "手册的页，在 docs/ 里："}


@click.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--lang", "language", type=click.Choice(tuple(PAGES)), default="en", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a sentence.")
def command(run: Path, language: str, as_json: bool) -> None:
    """Say what happened in a RUN, finished or not, in about 25 plain sentences, each with a page of the manual.

    What was rewarded, what changed in the text, what it cost in KL, what was not beaten, how the score rose, which
    alarms were raised, what to try next. Every sentence has a condition on the run's files; no model writes any.
    """
    from minirlhf.report.explain import explain
    from minirlhf.store.jsonl import json_line

    said = explain(run, language)
    if as_json:
        for sentence in said:
            print(json_line(vars(sentence)))
        return
    width = min(110, columns() or 110)
    numbers = {page: number for number, page in enumerate(dict.fromkeys(sentence.page for sentence in said), start=1)}
    for line in explained_lines(said, numbers, width):
        print(line)
    print()
    pages = [PAGES[language], *(f"[{number}] {page}" for page, number in numbers.items())]
    for line in filled_lines([f"{page}  " for page in pages], width):
        print(line)


def explained_lines(said: "list[Said]", numbers: Mapping[str, int], width: int) -> Iterator[str]:
    """Yield the lines: a section with its title at its first sentence, each sentence with the number of its page."""
    from rich.cells import cell_len

    section, before = "", LABEL if width >= LABEL + NARROWEST else 0
    for sentence in said:
        title = sentence.section if sentence.section != section else ""
        section = sentence.section
        for index, part in enumerate(f"{sentence.text} [{numbers[sentence.page]}]".split("\n")):
            inner = "  " * (index > 0)
            for number, line in enumerate(broken_lines(printable(part), max(LEAST, width - before - len(inner)))):
                label = title if index == number == 0 else ""
                if label and not before:
                    yield label
                yield f"{(label + ' ' * (before - cell_len(label))) * bool(before)}{inner}{line}"


def broken_lines(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text: it breaks at spaces and between letters of a script without spaces."""
    return filled_lines(PIECE.findall(text), width)


def filled_lines(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Yield lines of whole pieces, each at most `width` columns, a wide letter counted as two; a wider piece is cut."""
    from rich.cells import cell_len, chop_cells

    line = ""
    for piece in pieces:
        if line and cell_len((line + piece).rstrip()) > width:
            yield line.rstrip()
            line = ""
        *full, line = chop_cells(line + piece, width) if cell_len(piece.rstrip()) > width else [line + piece]
        yield from full
    if line.strip():
        yield line.rstrip()
