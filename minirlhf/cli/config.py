"""minirlhf config show | schema: the resolved configuration, and the schemas of configurations and events."""

import json
from typing import Any

import click

from minirlhf.cli.options import config_options, resolve_config


@click.group("config")
def command() -> None:
    """Show a resolved configuration, or the schema of one."""


@command.command("show")
@config_options
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show_config(as_json: bool, **options: Any) -> None:
    """Print the configuration that `run` would use with the same options; it can be run again as a file."""
    config, _ = resolve_config(**options)

    from minirlhf.config.toml import dump_toml, to_dict
    from minirlhf.rl.doubts import doubts

    for doubt in doubts(config):
        click.echo(f"warning: {doubt}", err=True)
    click.echo(json.dumps(to_dict(config), ensure_ascii=False) if as_json else dump_toml(config), nl=as_json)


@command.command("schema")
@click.option("--events", is_flag=True, help="Of a line that --json prints, instead.")
def schema(events: bool) -> None:
    """Print the JSON Schema of a configuration file: every key with its meaning, type and default."""
    from minirlhf.config.toml import json_schema
    from minirlhf.events import events_schema

    click.echo(json.dumps(events_schema() if events else json_schema(), indent=2))
