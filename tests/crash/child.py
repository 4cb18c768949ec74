"""Commands in processes of their own that can be killed: forked from one that has imported everything already."""

import errno
import multiprocessing
import os
import resource
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from time import monotonic, sleep

import minirlhf.pipeline.pipeline  # noqa: F401  # imported once, before the forks
from minirlhf import signals
from minirlhf.store import checkpoint
from minirlhf.store import weights as model
from tests.cli.calling import Result, call

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.crash.child"])
FAULTS = {"kill": None, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
ARMED = "step_00000003"  # a failpoint acts while this checkpoint is saved


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th system call of a save, before it is done; `largest`: no file may have more bytes."""

    at: int = 0
    what: str = ""
    largest: int | None = None


def body(pipe, arguments, fault):
    """The child: a command, and what it left to its parent."""
    if fault.largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.largest, fault.largest))
    calls = watch_saves(fault) if fault.at or fault.what == "count" else []
    result = call(*arguments)
    pipe.send((result, len(calls)))


def watch_saves(fault):
    """Count the calls that change the disk while the armed checkpoint is saved, and act at one of them."""
    calls, saving = [], []

    def reached(name):
        if saving:
            calls.append(name)
            if len(calls) == fault.at:
                if fault.what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                number = FAULTS[fault.what]
                raise OSError(number, os.strerror(number), "here")

    def audit(event, arguments):
        if event == "os.mkdir" and os.path.isdir(arguments[0]):
            return  # made again, which changes nothing
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            reached(event)

    def wrapped(module, name):
        sound = getattr(module, name)

        def function(*arguments, **options):
            reached(name)
            return sound(*arguments, **options)

        setattr(module, name, function)

    sound_save, sound_prune = checkpoint.save_checkpoint, checkpoint.prune

    def save(root, state, *rest):
        if checkpoint.directory_of(root, state.step).name == ARMED:
            saving.append(True)
        return sound_save(root, state, *rest)

    def prune(root, keep):
        sound_prune(root, keep)
        saving.clear()

    checkpoint.save_checkpoint, checkpoint.prune = save, prune
    wrapped(os, "fsync")
    wrapped(model, "save_file")
    sys.addaudithook(audit)
    return calls


def stuck(arguments, environment):
    """The child: a command whose reward never returns to Python, and little patience with it."""
    signals.GRACE = 0.5
    os.environ.update(environment)
    call(*arguments)


@contextmanager
def started(*arguments, fault=Fault()):
    """A command that is running: (process, the end of the pipe that its result comes out of)."""
    mine, its = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=body, args=(its, [str(a) for a in arguments], fault))
    process.start()
    its.close()
    try:
        yield process, mine
    finally:
        process.kill()
        process.join()
        mine.close()


def ended(process, pipe, patience=60.0):
    """(Result, calls counted) of a command, or None if it was killed. It must end by itself."""
    try:
        assert pipe.poll(patience), "it hangs"
        return pipe.recv()
    except EOFError:
        process.join(patience)
        return None


def run_to_its_end(*arguments, fault=Fault(), patience=60.0):
    with started(*arguments, fault=fault) as (process, pipe):
        return ended(process, pipe, patience)


def signalled(number, arguments, random: Random, longest: float) -> tuple[Result | None, float]:
    """Start a command, send it a signal after a random time; its result (None if it died), and seconds from the signal
    to its end."""
    with started(*arguments) as (process, pipe):
        sleep(random.uniform(0, longest))
        sent = monotonic()
        with suppress(ProcessLookupError):  # it may have ended already
            os.kill(process.pid, number)
        found = ended(process, pipe)
        return (found and found[0]), monotonic() - sent
