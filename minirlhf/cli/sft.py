"""minirlhf sft"""

import json
from typing import Any

import click

from minirlhf.cli.options import resolve, some_options


@click.command("sft")
@click.argument("demonstrations", metavar="DEMONSTRATIONS")
@some_options("preset", "sets", "device")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, each with an event.")
def command(
    demonstrations: str,
    preset: str | None,
    sets: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Fine-tune the base of a configuration on DEMONSTRATIONS (JSON rows: prompt, completion; or messages).

    DEMONSTRATIONS is a file, a folder, or the name of a packaged corpus: reviews. The loss is that of the completions.
    The model is kept beside the bases, where a run with the same demonstrations finds it, and opens in transformers:

    minirlhf run --set corpus.demonstrations=DEMONSTRATIONS
    """
    given = (*sets, f"corpus.demonstrations={json.dumps(demonstrations, ensure_ascii=False)}")
    flags: dict[str, Any] = dict.fromkeys(("kl", "advantage", "loss", "seed"))
    config, _ = resolve(preset=preset, rewards=(), sets=given, plugins=(), device=device, **flags)

    from minirlhf.base import prepare_base, prepare_start, read_shown
    from minirlhf.cli.show import Printer
    from minirlhf.run import set_up

    read_shown(config)  # its faults are found before anything is trained
    emit, on = Printer(as_json=as_json), set_up(config)
    start = prepare_start(config, prepare_base(config, on, emit), on, emit)
    if not as_json:
        click.echo(start.directory)
