"""Options that several commands share, and the configuration that they resolve to.

Not here: options of one command alone. Nothing heavy is imported at the top: `--help` must be fast.
"""

import gc
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.lines import tell

if TYPE_CHECKING:
    from pathlib import Path

    from minirlhf.components.registry import Registry
    from minirlhf.config.schema import Config

# Option -> the configuration key that it sets.
FLAGS = {
    "model": "model.path", "kl": "kl.estimator", "advantage": "advantage.function", "loss": "loss.policy",
    "seed": "run.seed",
}  # fmt: skip

_OPTIONS = {
    "preset": click.argument("preset", required=False, metavar="[PRESET|FILE.toml]"),
    "model": click.option(
        "--model", metavar="DIR|smollm2", help="Model of your own to start from, in place of pretraining."
    ),
    "rewards": click.option(
        "--reward", "rewards", multiple=True, metavar="NAME[=WEIGHT]", help="Reward, repeatable; replaces the set."
    ),
    "kl": click.option("--kl", metavar="NAME", help="KL estimator."),
    "advantage": click.option("--advantage", metavar="NAME", help="Advantage function."),
    "loss": click.option("--loss", metavar="NAME", help="Policy loss."),
    "sets": click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any key, repeatable: --set ppo.lr=3e-4"
    ),
    "plugins": click.option(
        "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Plugin to load, repeatable."
    ),
    "seed": click.option("--seed", type=int, metavar="N", help="Seed of the run."),
    "device": click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps."),
}


_OUTPUT = (
    click.option(
        "--ui",
        type=click.Choice(["auto", "live", "plain", "quiet"]),
        default="auto",
        show_default=True,
        help="Progress on stderr: panel (live), lines or nothing; auto: a panel on a terminal, else lines.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, each with an event."),
)


class FiniteRange(click.FloatRange):
    """Float in a range, finite: NaN would pass every comparison with a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all options that choose a configuration; they arrive as keyword arguments for `resolve_config`."""
    return some_options(*_OPTIONS)(command)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --ui and --json, which arrive as `ui` and `as_json` for `ui.progress`."""
    for option in reversed(_OUTPUT):
        command = option(command)
    return command


def some_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add only these of the options that choose a configuration."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return add


def check_folder(path: "Path") -> None:
    """Refuse, before any work, an output file whose folder does not exist (UsageError)."""
    if not path.absolute().parent.is_dir():
        from minirlhf.errors import UsageError

        raise UsageError("there is no such folder", str(path.absolute().parent), "make it, or choose another place")


def check_picture(path: "Path") -> None:
    """Refuse, before any work, a picture that cannot be written, or not drawn without matplotlib (UsageError)."""
    import importlib.util

    check_folder(path)

    if importlib.util.find_spec("matplotlib") is None:
        from minirlhf.errors import UsageError

        raise UsageError("--svg needs matplotlib", todo="pip install 'minirlhf[plot]'")


def plugin_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --plugin alone, for commands without a configuration."""
    return some_options("plugins")(command)


def jobs_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --jobs, for commands that make many runs."""
    return click.option(
        "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at once; left out: cores / run.threads, a GPU 1."
    )(command)


@contextmanager
def importing() -> Iterator[None]:
    """Search for no garbage while modules are imported, nor among what they made: torch alone makes 100,000 objects.

    Searches took a fifth of a second of the start, and each full one a tenth during a run.
    """
    gc.disable()
    try:
        yield
    finally:
        _freeze_once()
        gc.enable()


@cache
def _freeze_once() -> None:
    """Leave the objects of now out of every later search; once a process: what it has used by then may be garbage."""
    gc.freeze()


def overrides(device: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration keys and values of --device and the FLAGS; None means not given."""
    keys = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    return keys if device is None else {**keys, "run.device": device}


def resolve_config(
    *,
    preset: str | None,
    rewards: tuple[str, ...],
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    kinds: "Collection[str] | None" = None,
    **flags: Any,
) -> "tuple[Config, Registry]":
    """Resolve the options to a configuration and its plugins; warnings of plugins go to stderr.

    kinds: those of the components that the command uses; None: all. flags: values of --kl, --advantage, --loss and
    --seed; None or absent where not given.
    """
    options = overrides(device, flags)
    with importing():  # load_config imports the plugins, and they torch
        from minirlhf.components.component import KINDS
        from minirlhf.config.layers import load_config

        kinds = KINDS if kinds is None else kinds
        config, registry = load_config(
            preset, options=options, sets=sets, rewards=rewards, plugins=plugins, kinds=kinds
        )
    for warning in registry.warnings:
        tell(f"warning: {warning}")
    return config, registry
