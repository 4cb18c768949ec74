"""minirlhf model: a model of one's own, looked at before it is used."""

from pathlib import Path
from typing import Any

import click


@click.group("model")
def command() -> None:
    """Look at a model of your own."""


@command.command("show")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(directory: Path, as_json: bool) -> None:
    """Say whether the model in DIR can be used, its sizes and special tokens, and the memory that runs on it need."""
    from minirlhf.cli.lines import gigabytes
    from minirlhf.pipeline.plan import describe_model
    from minirlhf.store.jsonl import json_line

    found: dict[str, Any] = describe_model(directory)
    if as_json:
        print(json_line(found))
        return
    for name, value in found.items():
        if name != "memory":
            print(f"{name:<14}{value}")
    print("memory, calculated, of PPO with 16 responses of 64 + 64 tokens, minibatches of 4:")
    for way, stages in found["memory"].items():
        print(f"  {way:<32}" + "  ".join(f"{stage} {gigabytes(size).strip()}" for stage, size in stages.items()))
