"""Being told to stop, and stopping what takes too long.

Within `deferred` the first SIGINT (Ctrl-C), SIGTERM or SIGHUP is only remembered: whoever drives the steps looks at
`Stop.asked` between two of them, saves, and leaves. The second one acts at once. Everywhere else a signal acts at once:
SIGINT as KeyboardInterrupt, which is Python's way, the others as Terminated. Handlers that were there before are put
back; a signal that the parent process had ignored (nohup) stays ignored.
"""

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 10.0  # seconds
Handler = Callable[[int, FrameType | None], None]


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as KeyboardInterrupt is SIGINT. The text says how to go on, if that is known."""


def raise_for(number: int, text: str = "") -> NoReturn:
    """The exception of a signal."""
    raise (KeyboardInterrupt if number == signal.SIGINT else Terminated)(text)


@contextmanager
def time_limit(seconds: float | None, said: str) -> Iterator[None]:
    """TimeoutError(said) in whatever runs longer within; None: no limit. Only in the main thread.

    What never returns to Python (it waits in C) cannot be interrupted: after GRACE seconds more the process writes to
    stderr where all its threads are, and ends.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(said)

    with handled(expired, (signal.SIGALRM,)):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler: the first signal is remembered, the second acts."""
        if self.asked is not None:
            raise_for(number)
        self.asked = number

    def leave(self, text: str = "") -> None:
        """Raise what was asked for, if anything was."""
        if self.asked is not None:
            raise_for(self.asked, text)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Signals wait for the end of a step; in a thread other than the main one nothing changes."""
    stop = Stop()
    with handled(stop):
        yield stop


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A signal acts at the end: for calls of libraries in which the exception of a signal would become another one."""
    if isinstance(signal.getsignal(signal.SIGINT), Stop):  # it waits longer anyway
        yield
        return
    with deferred() as stop:
        yield
    stop.leave()


@contextmanager
def handled(handler: Handler, numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Signals go to `handler`, and afterwards to whom they went before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
