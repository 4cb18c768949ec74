"""minirlhf reward-model: the stage on its own. The stage is in stages/preferences.py."""

import json
from pathlib import Path

import click

from minirlhf.cli.options import check_picture, output_options, resolve_config, some_options


@click.command("reward-model")
@click.argument("comparisons", metavar="COMPARISONS")
@some_options("preset", "model", "sets", "device")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to save it; must not exist.")
@click.option(
    "--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw how often it is right when it says so."
)
@output_options
def command(
    comparisons: str,
    preset: str | None,
    model: str | None,
    sets: tuple[str, ...],
    device: str | None,
    out: Path | None,
    svg: Path | None,
    ui: str,
    as_json: bool,
) -> None:
    """Train a reward model from COMPARISONS (JSON rows: prompt, chosen, rejected), from the base of a configuration.

    COMPARISONS is a file, a folder, or the name of a packaged corpus: reviews.

    Then: minirlhf run --reward trained --set rewards.trained.path=DIR
    """
    given = (*sets, f"corpus.preferences={json.dumps(comparisons, ensure_ascii=False)}")
    config, _ = resolve_config(preset=preset, rewards=(), sets=given, plugins=(), device=device, kinds=(), model=model)

    if svg is not None:
        check_picture(svg)

    from minirlhf.cli.ui import progress
    from minirlhf.pipeline.build import set_up
    from minirlhf.stages.preferences import FILE, train_reward_model

    with progress(ui, as_json) as emit:
        directory = train_reward_model(config, out, set_up(config.run), emit)
    if svg is not None:
        from minirlhf.report.pictures import reliability
        from minirlhf.store.files import read_json, write_text

        write_text(svg.absolute(), reliability(read_json(directory / FILE)["report"]))
