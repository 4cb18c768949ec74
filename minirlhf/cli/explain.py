"""minirlhf explain: the explanation of a run (report/explain.py), wrapped and printed."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minirlhf.cli.fit import cells, lines, padded
from minirlhf.cli.lines import printable
from minirlhf.cli.stdio import columns

if TYPE_CHECKING:
    from minirlhf.report.explain import Said

LABEL = 10  # columns of a section's title
NARROWEST = 20  # columns that a sentence gets at least beside it; if there are fewer the title has a line of its own
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
    for line in page_lines(pages, width):
        print(line)


def explained_lines(said: "list[Said]", numbers: Mapping[str, int], width: int) -> Iterator[str]:
    """Yield the lines: a section with its title at its first sentence, each sentence with the number of its page."""
    section, before = "", LABEL if width >= LABEL + NARROWEST else 0
    for sentence in said:
        title = sentence.section if sentence.section != section else ""
        section = sentence.section
        for index, part in enumerate(f"{sentence.text} [{numbers[sentence.page]}]".split("\n")):
            inner = "  " * (index > 0)
            for number, line in enumerate(lines(printable(part), width - before - len(inner))):
                label = title if index == number == 0 else ""
                if label and not before:
                    yield label
                yield (padded(label, before, left=True) if before else "") + inner + line


def page_lines(pages: Iterable[str], width: int) -> Iterator[str]:
    """Yield lines of whole pages, two spaces between; one that is wider than a line is broken."""
    row = ""
    for page in pages:
        longer = f"{row}  {page}" if row else page
        if row and cells(longer) > width:
            yield from lines(row, width)
            longer = page
        row = longer
    yield from lines(row, width)
