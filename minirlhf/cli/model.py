"""minirlhf model: a model of one's own, looked at before it is used."""

from typing import Any

import click


@click.group("model")
def command() -> None:
    """Look at a model of your own."""


@command.command("show")
@click.argument("name", metavar="DIR|smollm2|ORG/NAME")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Say whether a model can be used, its sizes and special tokens, and the memory that runs on it need.

    It takes what --model does: a directory; smollm2, which is converted under runs/bases if it is not there yet; or
    ORG/NAME of the Hugging Face Hub, which is downloaded into its cache.
    """
    from minirlhf.cli.lines import gigabytes, warn
    from minirlhf.pipeline.plan import describe_model
    from minirlhf.store.jsonl import json_line

    found: dict[str, Any] = describe_model(name, warn)
    if as_json:
        print(json_line(found))
        return
    for title, value in found.items():
        if not title.startswith("memory"):
            print(f"{title:<14}{format(value, ',') if isinstance(value, int) else value}")
    print("memory, calculated, of PPO with 16 responses of 64 + 64 tokens, minibatches of 4:")
    for way, stages in found["memory"].items():
        print(f"  {way:<32}" + "  ".join(f"{stage} {gigabytes(size).strip()}" for stage, size in stages.items()))
