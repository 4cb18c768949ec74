"""The options that choose a configuration, shared by every command that takes one."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from minirlhf.components.registry import Registry
    from minirlhf.config.schema import Config

FLAGS = {"kl": "kl.estimator", "advantage": "advantage.function", "loss": "loss.policy", "seed": "run.seed"}

_OPTIONS = {
    "preset": click.argument("preset", required=False, metavar="[PRESET|FILE.toml]"),
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
    "device": click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N."),
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
    """A number in a range: no NaN, which is outside no range, and no infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add them to a command; they arrive as keyword arguments for `resolve`."""
    return some_options(*_OPTIONS)(command)


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """--ui and --json, which arrive as `ui` and `as_json` for show.progress."""
    for option in reversed(_OUTPUT):
        command = option(command)
    return command


def some_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add only these."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return add


def check_folder(path: "Path") -> None:
    """Say before the work that a file cannot be where it is wanted."""
    if not path.absolute().parent.is_dir():
        from minirlhf.errors import UsageError

        raise UsageError("there is no such folder", str(path.absolute().parent), "make it, or choose another place")


def check_picture(path: "Path") -> None:
    """Say before the work that a picture cannot be drawn, or not there."""
    import importlib.util

    check_folder(path)

    if importlib.util.find_spec("matplotlib") is None:
        from minirlhf.errors import UsageError

        raise UsageError("--svg needs matplotlib", todo="pip install 'minirlhf[plot]'")


def plugin_option(command: Callable[..., None]) -> Callable[..., None]:
    """--plugin alone, for commands that read no config."""
    return some_options("plugins")(command)


def jobs_option(command: Callable[..., None]) -> Callable[..., None]:
    """--jobs, for commands that make many runs."""
    return click.option(
        "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at once; left out: cores / run.threads, a GPU 1."
    )(command)


def resolve(
    *,
    preset: str | None,
    rewards: tuple[str, ...],
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    **flags: Any,
) -> "tuple[Config, Registry]":
    """Config and plugins from the options; warnings of plugins go to stderr.

    The remaining `flags` are --kl, --advantage, --loss and --seed, None where not given.
    """
    from minirlhf.config.layers import load_config

    chosen = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    if device is not None:
        chosen["run.device"] = device
    config, registry = load_config(preset, options=chosen, sets=sets, rewards=rewards, plugins=plugins)
    for warning in registry.warnings:
        click.echo(f"warning: {warning}", err=True)
    return config, registry
