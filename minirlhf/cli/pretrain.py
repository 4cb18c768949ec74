"""minirlhf pretrain: the stage on its own. The stage is in stages/base.py."""

from typing import Any

import click

from minirlhf.cli.options import config_options, output_options, resolve_config


@click.command("pretrain")
@config_options
@output_options
def command(ui: str, as_json: bool, **options: Any) -> None:
    """Make the base of a configuration, or find it, and print its directory."""
    config, _ = resolve_config(**options, kinds=())

    from minirlhf.cli.ui import progress
    from minirlhf.pipeline.build import set_up
    from minirlhf.pipeline.sources import read_run_prompts
    from minirlhf.stages.base import prepare_base

    read_run_prompts(config)  # faults of the files are found before anything is trained
    with progress(ui, as_json) as emit:
        base = prepare_base(config, set_up(config.run), emit)
    if not as_json:
        print(base.directory)
