"""minirlhf run"""

from pathlib import Path
from typing import Any

import click

from minirlhf.cli.options import config_options, resolve


@click.command("run")
@config_options
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run directory; made, must not hold anything."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with the run in this directory.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, each with an event.")
def command(out: Path | None, resume: Path | None, as_json: bool, **options: Any) -> None:
    """Pretrain a small language model (or reuse it), improve it by PPO, and evaluate before against after.

    PRESET is reviews by default, and FILE.toml a configuration of your own; the README lists the others.
    """
    if resume is not None:
        options["preset"] = config_of(resume, out, options["preset"])
    config, registry = resolve(**options)

    from minirlhf.cli.show import Printer
    from minirlhf.run import run

    run(config, registry, resume or out, Printer(as_json=as_json), resume=resume is not None)


def config_of(directory: Path, out: Path | None, preset: str | None) -> str:
    """The configuration of a run that is to go on; nothing else may choose one."""
    from minirlhf.errors import UsageError
    from minirlhf.resume import check_run

    if out is not None or preset is not None:
        given = "--out" if out is not None else preset
        raise UsageError(
            "--resume goes on with the run's own configuration, in its directory", f"{given}", "leave it out"
        )
    check_run(directory)
    return str(directory / "config.toml")
