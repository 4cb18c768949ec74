"""minirlhf pretrain"""

from typing import Any

import click

from minirlhf.cli.options import config_options, resolve


@click.command("pretrain")
@config_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, each with an event.")
def command(as_json: bool, **options: Any) -> None:
    """Make the base of a configuration, or find it, and print its directory."""
    config, _ = resolve(**options)

    from minirlhf.base import prepare_base
    from minirlhf.cli.show import Printer
    from minirlhf.run import set_up
    from minirlhf.saved import read_sources

    read_sources(config)  # faults of the files are found before anything is trained
    base = prepare_base(config, set_up(config), Printer(as_json=as_json))
    if not as_json:
        click.echo(base.directory)
