"""The user interface of a command that runs something: a panel or printed lines, chosen by --ui and --json.

Not here: the panel (panel.py) and the printer (printer.py) themselves.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from minirlhf.cli.printer import Printer
from minirlhf.errors import UsageError


@contextmanager
def progress(ui: str, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Event sink of a command, by --ui and --json; UsageError if they exclude each other or a panel has no terminal."""
    if as_json and ui in ("live", "plain"):
        raise UsageError("--json prints events and nothing else", f"--ui {ui}", "leave one of them out")
    live = ui == "live" or (ui == "auto" and not as_json and attended())
    if live and not drawable():
        raise UsageError("a panel needs a terminal", "stderr", "leave --ui live out, or use --ui plain")
    if live:
        from minirlhf.cli.panel import Panel

        with Panel() as panel:
            yield panel
        return
    printer = Printer(as_json=as_json, quiet=ui == "quiet")
    # Events are for programs: a thread that a plugin left behind must not print between them.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield printer


def attended() -> bool:
    """True if a person watches stderr: a TTY that can be redrawn, in the foreground, and no CI job."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false") or not drawable():
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:  # stderr is not the controlling terminal
        return False


def drawable() -> bool:
    """True if stderr is a UTF-8 TTY that can be redrawn. isatty first: rich trusts FORCE_COLOR even on a pipe."""
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    console = Console(stderr=True)
    utf = (sys.stderr.encoding or "").lower().startswith("utf")  # bars and sparklines are not ASCII
    return utf and console.is_interactive
