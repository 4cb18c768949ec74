"""minirlhf sft: the stage on its own. The stage is in stages/base.py."""

import json

import click

from minirlhf.cli.options import output_options, resolve_config, some_options


@click.command("sft")
@click.argument("demonstrations", metavar="DEMONSTRATIONS")
@some_options("preset", "model", "sets", "device")
@output_options
def command(
    demonstrations: str,
    preset: str | None,
    model: str | None,
    sets: tuple[str, ...],
    device: str | None,
    ui: str,
    as_json: bool,
) -> None:
    """Fine-tune the base of a configuration on DEMONSTRATIONS (JSON rows: prompt, completion; or messages).

    DEMONSTRATIONS is a file, a folder, or the name of a packaged corpus: reviews. The loss is that of the completions.
    The model is kept beside the bases, where a run with the same demonstrations finds it, and opens in transformers:

    minirlhf run --set corpus.demonstrations=DEMONSTRATIONS
    """
    given = (*sets, f"corpus.demonstrations={json.dumps(demonstrations, ensure_ascii=False)}")
    config, _ = resolve_config(preset=preset, rewards=(), sets=given, plugins=(), device=device, kinds=(), model=model)

    from minirlhf.cli.ui import progress
    from minirlhf.pipeline.build import set_up
    from minirlhf.stages.base import prepare_base, prepare_start, read_sft_data

    read_sft_data(config)  # faults of the file are found before anything is trained
    on = set_up(config.run)
    with progress(ui, as_json) as emit:
        start = prepare_start(config, prepare_base(config, on, emit), on, emit)
    if not as_json:
        print(start.directory)
