"""The group of commands, and the only place where an error becomes a line on stderr and an exit code.

Commands are imported when they are called: `--help` must not wait for torch.
"""

import contextlib
import errno
import importlib
import os
import re
import signal
import sys
from typing import Any, NoReturn

import click

import minirlhf
from minirlhf.cli import stdio
from minirlhf.cli.lines import printable, tell
from minirlhf.errors import ConfigError, DiskError, UsageError, UserError
from minirlhf.signals import Terminated, act, handled

# Name -> (module, help). The help texts stand here so that listing the commands imports none of them.
COMMANDS = {
    "run": ("minirlhf.cli.run", "Pretrain, improve by PPO, evaluate: the whole of it."),
    "pretrain": ("minirlhf.cli.pretrain", "Make the base of a configuration, or find it."),
    "sft": ("minirlhf.cli.sft", "Fine-tune the base on demonstrations."),
    "label": ("minirlhf.cli.label", "Judge pairs of completions: comparisons of your own."),
    "reward-model": ("minirlhf.cli.reward_model", "Train a reward model from a file of comparisons."),
    "evaluate": ("minirlhf.cli.evaluate", "Reference against policy of a run, again or by other rewards."),
    "report": ("minirlhf.cli.report", "One page of a run: curves, before and after, token by token."),
    "explain": ("minirlhf.cli.explain", "What happened in a run, in about 25 plain sentences."),
    "inspect": ("minirlhf.cli.inspect", "The tokens of one response, on the terminal."),
    "sample": ("minirlhf.cli.sample", "Let the stages of a run continue a prompt, side by side."),
    "export": ("minirlhf.cli.export", "The policy of a run for transformers or PEFT."),
    "model": ("minirlhf.cli.model", "A model of your own: supported or why not, and the memory that it needs."),
    "compare": ("minirlhf.cli.compare", "Presets or values side by side over several seeds."),
    "overoptimise": ("minirlhf.cli.overoptimise", "Where a reward model's score and the true score part."),
    "audit": ("minirlhf.cli.audit", "Bias, variance and gradient of an estimator against exact enumeration."),
    "bench": ("minirlhf.cli.bench", "Seconds of an iteration, against peers on the same work."),
    "plugins": ("minirlhf.cli.plugins", "List components, show, check or begin one."),
    "config": ("minirlhf.cli.config", "Show a resolved configuration, or the schema."),
}
# Errors of a disk that is full or read-only, then of paths where no file can be made.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
DISK |= {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class ReaderGone(Exception):
    """The reader of stdout closed the pipe, as `| head -1` does; click alone would exit with 1, as for a bug."""


class Commands(click.Group):
    """Click group that imports a command when it is used and suggests the nearest name for an unknown one."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:  # which prints --help
        try:
            return super().make_context(*arguments, **options)
        except BrokenPipeError as fault:
            raise ReaderGone from fault

    def invoke(self, ctx: click.Context) -> None:
        os.getcwd()  # torch cannot be imported where the current directory is gone: that is said at once
        try:
            super().invoke(ctx)
        except BrokenPipeError as fault:
            raise ReaderGone from fault

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Expand `~` behind the = of --OPTION=~/PATH, where bash does not."""
        home = re.compile(r"(--[a-z-]+=)(~.*)", re.DOTALL)
        found = ((arg, home.fullmatch(arg)) for arg in args)
        return super().parse_args(ctx, [m[1] + os.path.expanduser(m[2]) if m else arg for arg, m in found])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(minirlhf.__version__, prog_name="minirlhf")
def group() -> None:
    """The whole of RLHF in two minutes: a language model that you train, improve by PPO, and can take apart."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 when done, 128 + number for a signal, else the exit code of the error (errors.py)."""
    # OpenMP threads wait for each other by spinning. If another process takes a core, they spin for a whole scheduler
    # slice: a 2-thread step was 75 times slower beside one busy process. A short spin before sleeping costs little.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    stdio.open_streams()
    stdio.claim_stdout()
    code = 0
    try:
        with handled(act):
            group.main(args=arguments, prog_name="minirlhf", standalone_mode=False)
            sys.stdout.flush()
    except BaseException as fault:
        code = report_fault(fault)
    stdio.finish(embedded=arguments is not None)
    sys.exit(code)


def report_fault(fault: BaseException) -> int:
    """Print an error as one line and return its exit code; a bug prints its traceback and returns 1."""
    if isinstance(fault, SystemExit):
        return int(fault.code or 0)
    if isinstance(fault, click.exceptions.Exit):
        return fault.exit_code
    if isinstance(fault, (KeyboardInterrupt, click.Abort, Terminated)):
        terminated = isinstance(fault, Terminated)
        said = "terminated" if terminated else "interrupted"
        cause = fault.__cause__ if isinstance(fault, click.Abort) else fault  # click wraps Ctrl-C
        to_stderr(f"{said}; {cause}" if cause is not None and str(cause) else said)
        return 143 if terminated else 130
    if isinstance(fault, (ReaderGone, BrokenPipeError)):
        return 128 + signal.SIGPIPE  # the code of a program that SIGPIPE killed
    if isinstance(fault, (OSError, UnicodeEncodeError)):
        fault = of_the_place(fault) or fault
    if isinstance(fault, OSError) and fault.errno in DISK:
        fault = DiskError(
            f"cannot write ({fault.strerror})", str(fault.filename or ""), "free the disk, or choose another place"
        )
    if isinstance(fault, click.exceptions.NoArgsIsHelpError):
        tell(fault.format_message())
        return fault.exit_code
    if isinstance(fault, click.ClickException):
        to_stderr(f"error: {' '.join(fault.format_message().split())}{number_advice(fault)}")
        return fault.exit_code
    if isinstance(fault, ConfigError):
        for line in fault.faults:
            to_stderr(f"error: {line}")
        return fault.exit_code
    if isinstance(fault, UserError):
        to_stderr(f"error: {fault}")
        return fault.exit_code
    return unexpected(fault)


def of_the_place(fault: OSError | UnicodeEncodeError) -> UsageError | None:
    """Error about the current directory or the locale, if these caused the fault."""
    if isinstance(fault, UnicodeEncodeError):
        names = sys.getfilesystemencoding()
        if names == "utf-8" or fault.encoding != names:
            return None
        where = repr(fault.object) if len(str(fault.object)) < 200 else ""
        return UsageError(f"the locale has no such letters in names of files ({names})", where, "set LC_ALL=C.UTF-8")
    try:
        os.getcwd()
    except FileNotFoundError:
        return UsageError("the current directory is gone", todo="cd into one that exists")
    return None


def number_advice(fault: click.ClickException) -> str:
    """` Write 1000.` after the refusal of an option's number that was plain, such as 1e3."""
    refused = re.search(r"'(.*)' is not a valid (integer|float)", fault.message)
    if refused is None:
        return ""
    from minirlhf.config.values import respelled

    written = respelled(refused[1], "integer" if refused[2] == "integer" else "number")
    return f" Write {written}." if written else ""


def unexpected(fault: BaseException) -> int:
    """Report a bug with its traceback, or exhausted memory in one line; returns 1."""
    import traceback

    # torch on a CPU raises a plain RuntimeError when memory runs out.
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError" or "allocate memory" in str(fault):
        to_stderr(
            "error: out of memory; lower ppo.micro_batch_size, ppo.prompts_per_iteration or sampler.max_new_tokens"
        )
        return 1
    with contextlib.suppress(OSError):  # nobody can be told; the exit code still says it
        traceback.print_exception(fault)
    to_stderr(f"error: this is a bug in minirlhf {minirlhf.__version__}; please report the lines above")
    return 1


def to_stderr(text: str) -> None:
    """Print one line to stderr, with control characters of files and plugins escaped."""
    with contextlib.suppress(OSError):  # nobody can be told; the exit code still says it
        tell(printable(text))
