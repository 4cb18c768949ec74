"""minirlhf config show | schema: the resolved configuration, and the schemas of configurations and events."""

import codecs
import json
import sys
from typing import Any, TextIO

import click

from minirlhf.cli.lines import tell
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
        tell(f"warning: {doubt}")
    if as_json:
        print(json.dumps(to_dict(config)))
    else:
        print(dump_toml(config) if utf_8(sys.stdout) else ascii_toml(dump_toml(config)), end="")


def utf_8(stream: TextIO) -> bool:
    """True if a stream writes UTF-8, as a configuration file must be."""
    return stream.encoding is None or codecs.lookup(stream.encoding).name == "utf-8"


def ascii_toml(text: str) -> str:
    """TOML whose letters outside ASCII, which stand in strings alone, are escapes."""
    return "".join(c if c.isascii() else f"\\u{ord(c):04x}" if c <= "\uffff" else f"\\U{ord(c):08x}" for c in text)


@command.command("schema")
@click.option("--events", is_flag=True, help="Of a line that --json prints, instead.")
def schema(events: bool) -> None:
    """Print the JSON Schema of a configuration file: every key with its meaning, type and default."""
    from minirlhf.config.toml import json_schema
    from minirlhf.events import events_schema

    print(json.dumps(events_schema() if events else json_schema(), indent=2))
