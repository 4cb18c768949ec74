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
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, each with an event.")
def command(out: Path | None, as_json: bool, **options: Any) -> None:
    """Pretrain a small language model (or reuse it), improve it by PPO, and evaluate before against after.

    PRESET is reviews (the default), notes or tiny; a name that ends in .toml is a file.
    """
    config, registry = resolve(**options)

    from minirlhf.cli.show import Printer
    from minirlhf.run import run

    run(config, registry, out, Printer(as_json=as_json))
