"""The group of commands and the one place where an error becomes a line and an exit code.

Commands are imported when they are called: `--help` must answer before torch could be imported.
"""

import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

import minirlhf
from minirlhf.errors import ConfigError, DiskError, UserError
from minirlhf.signals import Terminated, act, handled

# name -> (module, help): the help is here so that listing the commands imports none of them.
COMMANDS = {
    "run": ("minirlhf.cli.run", "Pretrain, improve by PPO, evaluate: the whole of it."),
    "pretrain": ("minirlhf.cli.pretrain", "Make the base of a configuration, or find it."),
    "sft": ("minirlhf.cli.sft", "Fine-tune the base on demonstrations."),
    "label": ("minirlhf.cli.label", "Judge pairs of completions: comparisons of your own."),
    "reward-model": ("minirlhf.cli.reward_model", "Train a reward model from a file of comparisons."),
    "evaluate": ("minirlhf.cli.evaluate", "Reference against policy of a run, again or by other rewards."),
    "report": ("minirlhf.cli.report", "One page of a run: curves, before and after, token by token."),
    "inspect": ("minirlhf.cli.inspect", "The tokens of one response, on the terminal."),
    "sample": ("minirlhf.cli.sample", "Let the stages of a run continue a prompt, side by side."),
    "compare": ("minirlhf.cli.compare", "Presets or values side by side over several seeds."),
    "overoptimise": ("minirlhf.cli.overoptimise", "Where a reward model's score and the true score part."),
    "audit": ("minirlhf.cli.audit", "Bias, variance and gradient of an estimator against exact enumeration."),
    "bench": ("minirlhf.cli.bench", "Seconds of an iteration, against peers on the same work."),
    "plugins": ("minirlhf.cli.plugins", "List components, show, check or begin one."),
    "config": ("minirlhf.cli.config", "Show a resolved configuration, or the schema."),
}
# A disk that is full or cannot be written, and names at which no file can be.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
DISK |= {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class ReaderGone(Exception):
    """The reader of the output went away, as `| head -1` does (click would end with 1, as for a bug)."""


class Commands(click.Group):
    """Commands by name, imported on use, with the nearest name for one that does not exist."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            super().invoke(ctx)
        except BrokenPipeError as fault:
            raise ReaderGone from fault

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
    """Run a command and exit with its code (README: Exit codes)."""
    # Threads that wait for each other by spinning stand still for a whole scheduler slice whenever another process
    # takes a core (a 2-thread step was measured 75 times slower beside one busy process); a short spin costs little.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        with handled(act):
            group.main(args=arguments, prog_name="minirlhf", standalone_mode=False)
            sys.stdout.flush()
    except BaseException as fault:
        sys.exit(report(fault))
    sys.exit(0)


def report(fault: BaseException) -> int:
    """Say what went wrong in one line; the exit code. What no user can cause keeps its traceback and gives 1."""
    if isinstance(fault, SystemExit):
        return int(fault.code or 0)
    if isinstance(fault, click.exceptions.Exit):
        return fault.exit_code
    if isinstance(fault, (KeyboardInterrupt, click.Abort, Terminated)):
        terminated = isinstance(fault, Terminated)
        said = "terminated" if terminated else "interrupted"
        todo = fault.__cause__ if isinstance(fault, click.Abort) else fault  # click wraps Ctrl-C
        say(f"{said}; {todo}" if todo is not None and str(todo) else said)
        return 143 if terminated else 130
    if isinstance(fault, (ReaderGone, BrokenPipeError)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as a program has that does not look
    if isinstance(fault, OSError) and fault.errno in DISK:
        fault = DiskError(
            f"cannot write ({fault.strerror})", str(fault.filename or ""), "free the disk, or choose another place"
        )
    if isinstance(fault, click.exceptions.NoArgsIsHelpError):
        click.echo(fault.format_message(), err=True)
        return fault.exit_code
    if isinstance(fault, click.ClickException):
        say(f"error: {' '.join(fault.format_message().split())}")
        return fault.exit_code
    if isinstance(fault, ConfigError):
        for line in fault.faults:
            say(f"error: {line}")
        return fault.exit_code
    if isinstance(fault, UserError):
        say(f"error: {fault}")
        return fault.exit_code
    return unexpected(fault)


def unexpected(fault: BaseException) -> int:
    """A bug of ours, or memory that ran out."""
    import traceback

    # On the CPU torch says so with a RuntimeError.
    if isinstance(fault, MemoryError) or type(fault).__name__ == "OutOfMemoryError" or "allocate memory" in str(fault):
        say("error: out of memory; lower ppo.micro_batch_size, ppo.prompts_per_iteration or sampler.max_new_tokens")
        return 1
    traceback.print_exception(fault)
    say(f"error: this is a bug in minirlhf {minirlhf.__version__}; please report the lines above")
    return 1


def say(text: str) -> None:
    """One line to stderr; a control character that a file or a plugin put into it is escaped."""
    from minirlhf.cli.show import printable, tell

    tell(printable(text))
