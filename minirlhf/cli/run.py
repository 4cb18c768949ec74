"""minirlhf run: a run from its options, or the continuation of one. The run is in pipeline/pipeline.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.options import config_options, importing, output_options, resolve_config

if TYPE_CHECKING:
    from minirlhf.components.registry import Registry
    from minirlhf.config.schema import Config


@click.command("run")
@config_options
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run directory; made, must not hold anything."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with the run in this directory.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the memory that it needs, calculated, and run nothing; "
    "a model that is not on disk yet is converted or downloaded.",
)
@output_options
def command(out: Path | None, resume: Path | None, dry_run: bool, ui: str, as_json: bool, **options: Any) -> None:
    """Pretrain a small language model (or reuse it), improve it by PPO, and evaluate before against after.

    PRESET is reviews by default, and FILE.toml a configuration of your own; the page `running` of the manual lists all.
    """
    if resume is not None:
        options["preset"] = config_of(resume, out, options["preset"])
    config, registry = resolve_config(**options)
    if dry_run:
        print_plan(config, registry, as_json)
        return

    with importing():
        from minirlhf.cli.ui import progress
        from minirlhf.pipeline.pipeline import run

    with progress(ui, as_json) as emit:
        run(config, registry, resume or out, emit, resume=resume is not None)


def print_plan(config: "Config", registry: "Registry", as_json: bool) -> None:
    """Print the memory of a run by what it is for, and its peak beside what the device has."""
    from minirlhf.cli.lines import memory_lines, warn
    from minirlhf.pipeline.plan import plan_run
    from minirlhf.store.jsonl import json_line

    plan = plan_run(config, registry, warn)
    print(json_line(plan.as_event()) if as_json else "\n".join(memory_lines(plan.as_event())))


def config_of(directory: Path, out: Path | None, preset: str | None) -> str:
    """Path of the configuration of a run to resume; UsageError if another one is chosen or there is no run."""
    from minirlhf.errors import UsageError
    from minirlhf.store.layout import check_run

    if out is not None or preset is not None:
        given = "--out" if out is not None else preset
        raise UsageError(
            "--resume goes on with the run's own configuration, in its directory", f"{given}", "leave it out"
        )
    check_run(directory)
    return str(directory / "config.toml")
