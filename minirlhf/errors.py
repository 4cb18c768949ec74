"""Every error a user can cause, each with its exit code.

A refusal is one line: `error: <what>: <where>; <what to do>`. The command line prints it and exits with
`exit_code`; a library user catches `UserError`. Anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Collection, Sequence


class UserError(Exception):
    """Base of every error a user can cause. `what` went wrong, `where`, and what `todo` about it."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        message = what + (f": {where}" if where else "") + (f"; {todo}" if todo else "")
        # A refusal is one line whatever text a file or a plugin put into it.
        super().__init__(" ".join(message.split()))


class UsageError(UserError):
    """The command line names something that does not exist or does not fit together (exit 2)."""


class InputError(UserError):
    """A corpus, prompt, tokenizer or model file cannot be used (exit 2)."""


class ConfigError(UserError):
    """One or more faults in the configuration, all found in one go (exit 2)."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = [" ".join(fault.split()) for fault in faults]


class DivergedError(UserError):
    """A loss, gradient or weight is not finite (exit 3)."""

    exit_code = 3


class CheckpointError(UserError):
    """No valid checkpoint (exit 4)."""

    exit_code = 4


class PluginError(UserError):
    """A plugin cannot be loaded, raised, or broke its contract (exit 5)."""

    exit_code = 5

    def at_step(self, step: int) -> "PluginError":
        """The same error, saying at which training step it happened."""
        return PluginError(f"step {step}: {self}")


class DiskError(UserError):
    """A file cannot be written (exit 6)."""

    exit_code = 6


def nearest(name: str, choices: Collection[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no choice is near."""
    found = difflib.get_close_matches(name, list(choices), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(x) for x in found)}?)" if found else ""
