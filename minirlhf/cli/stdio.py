"""The standard streams of a command: closed ones opened, no letter too strange for them, stdout for results alone.

Not here: what is printed (printer.py, lines.py), and prints of a plugin's own Python code (components/guard.py).
"""

import contextlib
import io
import os
import sys
from typing import TextIO

_results: TextIO | None = None  # what the caller gave as stdout, under another descriptor, once it has been claimed


def open_streams() -> None:
    """Make stdin, stdout and stderr usable: open closed ones on /dev/null, escape letters that they cannot hold."""
    # In this order: open takes the lowest free descriptor. Progress must not land in a file that took descriptor 2.
    sys.stdin = sys.stdin or _open_null("r")
    sys.stdout = sys.stdout or _open_null("w")
    sys.stderr = sys.stderr or _open_null("w")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a caller has put something of its own there
            with contextlib.suppress(io.UnsupportedOperation):  # something was read from stdin already
                stream.reconfigure(errors="backslashreplace")


def _open_null(mode: str) -> TextIO:
    file = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # for the whole process
    assert isinstance(file, io.TextIOWrapper)
    return file


def claim_stdout() -> None:
    """Let sys.stdout alone reach stdout, and point descriptor 1 at stderr.

    A plugin's child processes and libraries in C write to descriptor 1, into the midst of what a program reads.
    """
    global _results
    out = sys.stdout
    try:
        if out.fileno() != 1 or not isinstance(out, io.TextIOWrapper):
            return
    except (OSError, ValueError):  # a caller has put something of its own there
        return
    if _results is None:
        out.flush()
        handle = os.dup(1)
        os.dup2(2, 1)
        buffering = 1 if out.line_buffering else -1
        _results = open(handle, "w", buffering, encoding=out.encoding, errors=out.errors)  # noqa: SIM115
    sys.stdout = _results


def _before_fork() -> None:
    """Write what stdout still holds: the child would write it once more."""
    if _results is not None:
        with contextlib.suppress(OSError, ValueError):  # the next print will say it
            _results.flush()


def _in_child() -> None:
    """Print to stderr in a forked child, and past a panel: no thread of the child draws it or frees its lock."""
    if _results is not None and sys.__stderr__ is not None:
        sys.stdout = sys.stderr = sys.__stderr__


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def columns(stream: TextIO | None = None) -> int | None:
    """Width of the terminal that a stream (None: stdout) is: COLUMNS if it is set, even for a pipe; None for a pipe."""
    stream = stream or sys.stdout
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:  # a terminal that does not say
        return 80


def finish(*, embedded: bool) -> None:
    """Flush stdout and stderr, and drop what cannot be written: Python would try again, and exit with 120.

    What a plugin prints while Python ends goes to stderr. embedded: the process goes on, and gets its stdout back.
    """
    global _results
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # its reader is gone, or its disk is full; the exit code says so
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if _results is not None and sys.__stdout__ is not None:
        sys.stdout = sys.__stdout__
        if embedded:
            os.dup2(_results.fileno(), 1)
            _results.close()
            _results = None
