"""Text that fits a terminal: lines wrapped between words, tables whose columns fold into blocks.

Widths are in columns of the terminal, of which a Chinese character takes two. A width of None is a pipe or a file:
nothing is wrapped there, so that a line stays a line for `grep`. Not here: the width itself (stdio.py).
"""

import re
from collections.abc import Sequence

LEAST = 8  # columns that wrapped text gets, however narrow the terminal is
PROSE = 20  # columns that prose needs beside others
WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\U00020000-\U0003fffd"
CLOSING = "\u3001\u3002\u300b\u300d\u300f\u3011\uff01\uff09\uff0c\uff1a\uff1b\uff1f"  # never the first of a line
# A word with the spaces before it, or one wide character, as Chinese has no spaces to break at; with the closing marks
# behind it. `a -> b` is one word.
PIECE = re.compile(rf"\s*(?:[{WIDE}]|[^\s{WIDE}]+(?: -> [^\s{WIDE}]+)?)[{CLOSING}]*")


def cells(text: str) -> int:
    """Columns that a text takes on a terminal: 2 for a wide character, 0 for a combining one."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int | None, start: str = "", hang: int = 0) -> str:
    """`start` and text, wrapped to a width; later lines are indented to where the text begins, and by `hang` more.

    None: one line.
    """
    if width is None:
        return start + text
    before = cells(start)
    first, *later = lines(text, width - before - hang, hang)
    return "\n".join([start + first, *(" " * (before + hang) + line for line in later)])


def lines(text: str, room: int, more: int = 0) -> list[str]:
    """Lines of a text in a room of so many columns (at least LEAST), broken between words; a longer word is cut.

    more: columns that the first line has beside these.
    """
    least = max(LEAST, room)
    room, found, line = least + more, list[str](), ""
    for piece in PIECE.findall(text):
        if line and cells(line) + cells(piece) > room:
            found.append(line)
            line, room = "", least
        line = line + piece if line else piece.lstrip() if found else piece
        while cells(line) > room:
            head = start_of(line, room)
            found.append(head)
            line, room = line[len(head) :], least
    return [*found, line]


def start_of(text: str, room: int) -> str:
    """Longest start of a text that takes at most so many columns; one character at least."""
    end, used = 0, 0
    for character in text:
        used += cells(character)
        if used > room and end:
            break
        end += 1
    return text[:end]


def fitting(fields: Sequence[str], width: int | None, dispensable: Sequence[str]) -> str:
    """Fields of a line, two spaces between; dispensable ones are left out, in order, until the line fits."""
    kept, gone = list(fields), list(dispensable)
    while gone and width is not None and cells("  ".join(kept)) > width:
        kept.remove(gone.pop(0))
    return "  ".join(kept)


def table(rows: Sequence[Sequence[str]], width: int | None, words: Sequence[int] = (0,)) -> list[str]:
    """Lines of a table, its heads first: columns of words to the left, numbers to the right, two spaces between.

    Columns that do not fit in the width continue in a block below, each with the first column again. A text of the
    first column that is longer than a third of the width takes several lines.
    """
    labels, sizes = [row[0] for row in rows], [max(map(cells, column)) for column in zip(*rows, strict=True)]
    first = sizes[0] if width is None else min(sizes[0], max(PROSE, width // 3))
    blocks, used = list[list[int]](), 0
    for column, size in enumerate(sizes[1:], start=1):
        if not blocks or (width is not None and used + 2 + size > width):
            blocks.append([])
            used = first
        blocks[-1].append(column)
        used += 2 + size
    found = list[str]()
    for number, block in enumerate(blocks or [[]]):
        found += [""] * (number > 0)
        for label, row in zip(labels, rows, strict=True):
            if number and not any(row[i] for i in block):
                continue  # a row that has nothing in these columns: its label stands above
            head, *rest = [label] if cells(label) <= first else lines(label, first)
            others = ("  " + padded(row[i], sizes[i], left=i in words) for i in block)
            found += [(padded(head, first, left=True) + "".join(others)).rstrip(), *rest]
    return found


def padded(text: str, size: int, *, left: bool) -> str:
    """Text in a field of so many columns, at its left or its right end."""
    space = " " * (size - cells(text))
    return text + space if left else space + text


def listing(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Lines of rows whose last column is prose: the others are aligned, the prose is wrapped in the room that is left.

    Where less than PROSE columns are left, it begins on a line of its own.
    """
    sizes = [max(map(cells, column)) for column in list(zip(*rows, strict=True))[:-1]]
    start = sum(sizes) + 2 * len(sizes)
    found = list[str]()
    for *row, prose in rows:
        before = "".join(padded(cell, size + 2, left=True) for cell, size in zip(row, sizes, strict=True))
        if width is None or width - start >= PROSE:
            found += [line.rstrip() for line in wrapped(prose, width, before).split("\n")]
        else:
            found += wrapped(before.rstrip(), width).split("\n")
            found += wrapped(prose, width, "    ").split("\n") if prose else []
    return found
