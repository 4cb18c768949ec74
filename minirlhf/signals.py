"""Signals that stop a run, and time limits.

Within `deferred` the first SIGINT (Ctrl-C), SIGTERM or SIGHUP is only recorded: the driver of the steps checks
`Stop.asked` between two of them, saves, and leaves. The second one acts at once. Everywhere else a signal acts at once:
SIGINT as KeyboardInterrupt, which is Python's way, the others as Terminated. Earlier handlers are restored; a signal
that the parent process had ignored (nohup) stays ignored. A forked child, such as a worker of a reward's pool, gets the
earlier handlers at once, so that SIGTERM ends it.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 10.0  # seconds
TO_DIE, TO_RETURN = 0.5, 2.5  # seconds that a signal has to end a plugin's workers, and then the plugin to return
STOPPING = "stopping after this step, with a save; once more: at once"
Handler = Callable[[int, FrameType | None], None]


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as KeyboardInterrupt is SIGINT. The text says how to continue, if that is known."""


class TimeUp(BaseException):
    """End of a time limit.

    It is no Exception, and no OSError as TimeoutError is: the code that it must end would catch those.
    """


def raise_for(number: int, text: str = "") -> NoReturn:
    """Raise the exception of a signal."""
    raise (KeyboardInterrupt if number == signal.SIGINT else Terminated)(text)


@contextmanager
def time_limit(seconds: float | None, said: str) -> Iterator[None]:
    """Context that raises TimeUp(said) after some seconds; None: no limit. Only in the main thread.

    Code that never returns to Python (it waits in C) cannot be interrupted: after GRACE seconds more the process writes
    the stacks of all its threads to stderr, and ends.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeUp(said)

    with handled(expired, (signal.SIGALRM,)):
        # The timer repeats, in case the code within swallows the first exception.
        signal.setitimer(signal.ITIMER_REAL, seconds, max(seconds, 1.0))
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()


def act(number: int, frame: FrameType | None) -> None:
    """Signal handler that acts at once, unless an import or a fork is running.

    Within an import the exception would be swallowed, or leave a module half imported, and within a fork it would be
    swallowed: there the signal is repeated a little later.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code in FORKING:
            again = threading.Timer(0.05, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise_for(number)


def _announce() -> None:
    with suppress(OSError):  # print is not re-entrant: a signal may interrupt one that holds the buffer
        os.write(2, f"\n{STOPPING}\n".encode())


announce: Callable[[], None] = _announce  # replaced by a display that draws on the whole terminal


class Stop:
    """Record of the first signal: its number in `asked`, None as long as none has come."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first is recorded, the second acts."""
        if self.asked is not None:
            act(number, frame)
            return
        self.asked = number
        announce()
        _watch_workers(number)

    def leave(self, text: str = "") -> None:
        """Raise the recorded signal, if there is one."""
        if self.asked is not None:
            raise_for(self.asked, text)


def leave_if_asked(text: str) -> None:
    """Raise the signal that the running `deferred` has recorded, if any: what fails now may fail because of it."""
    for stop in _waiting:
        stop.leave(text)


def _watch_workers(number: int) -> None:
    """Act at once if the signal ended workers of the plugin that is being called, and the call does not return.

    A signal to a whole process group (Ctrl-C, `timeout`, a scheduler) reaches them, too. A multiprocessing.Pool starts
    other workers and waits for the lost results for ever.
    """
    processes = sys.modules.get("multiprocessing.process")
    workers, call = list(getattr(processes, "_children", ())), plugin_call
    if call is None or not workers:
        return

    def look() -> None:
        sleep(TO_DIE)
        with suppress(ValueError):  # the plugin has closed one
            if any(worker.exitcode for worker in workers):
                sleep(TO_RETURN)
                if plugin_call is call:
                    os.kill(os.getpid(), number)

    threading.Thread(target=look, daemon=True).start()


plugin_call: object | None = None  # stands for the innermost running call of a plugin (components/guard.py)
_waiting: list[Stop] = []  # at most one: the record of the outermost running `deferred`


@contextmanager
def deferred() -> Iterator[Stop]:
    """Delay signals: the first is recorded, for the caller to check between steps, and raised at block exit.

    A nested block shares the outer one's record. In a thread other than the main one nothing changes. It also protects
    calls of libraries that would turn the exception of a signal into another one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    if _waiting:
        yield _waiting[0]
        return
    stop = Stop()
    _waiting.append(stop)
    try:
        with handled(stop):
            yield stop
    finally:
        _waiting.clear()
    stop.leave()


@contextmanager
def handled(handler: Handler, numbers: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Context in which signals go to `handler`; the earlier handlers are restored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    outermost = {number: old for number, old in before.items() if number not in _earlier}
    _earlier.update(outermost)
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        for number in outermost:
            _earlier.pop(number, None)


_earlier: dict[signal.Signals, Any] = {}  # signal -> its handler before the outermost running `handled`


def _let_go() -> None:
    """Undo in a forked child what is meant for this process alone: its handlers, and torch's threads.

    Ctrl-C and a hangup reach a whole process group. Where this process only records the first one, its child ignores
    it: a pool whose workers had died of it would wait for their results for ever.
    """
    if not _earlier:
        return
    signal.set_wakeup_fd(-1)
    recording = bool(_waiting) and _waiting[0].asked is None
    for number, old in _earlier.items():
        shared = recording and number in SIGNALS and number != signal.SIGTERM
        signal.signal(number, _ignore_first(old) if shared else old)
    _earlier.clear()
    _waiting.clear()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)  # OpenMP's threads are not in the child, which would wait for them for ever
    _unblock()


def _block() -> None:
    """Hold signals back until a fork is over: a child that is ended at once must not handle one as its parent does."""
    if _earlier:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _earlier)


def _unblock() -> None:
    before = vars(_mask).pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


FORKING = (_block.__code__, _unblock.__code__)  # a signal may be told to a thread that blocks nothing
_mask = threading.local()  # `before`: signals that a thread which is forking had blocked


def _ignore_first(old: Any) -> Handler:
    """Signal handler that does nothing once, and then makes room for the earlier one."""

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(number, old)

    return handler


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_let_go)
