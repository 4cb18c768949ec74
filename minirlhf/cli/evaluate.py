"""minirlhf evaluate: a finished run evaluated again, printed. The evaluation is in pipeline/evaluation.py."""

from pathlib import Path

import click

from minirlhf.cli.lines import printable, tell
from minirlhf.cli.options import plugin_option, resolve_config


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME[=WEIGHT]", help="Score by these instead of the run's."
)
@click.option("--prompts", metavar="FILE", help="Prompts of your own instead of the held-out ones.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Such as evaluation.prompts=64, run.seed=7")
@plugin_option
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="The content of evaluation.json on one line.")
def command(
    run: Path,
    rewards: tuple[str, ...],
    prompts: str | None,
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Compare reference and policy of a finished RUN on the same prompts with the same random numbers.

    The result is printed; it is not saved.
    """
    from minirlhf.pipeline.saved import config_file

    config, registry = resolve_config(
        preset=config_file(run), rewards=rewards, sets=sets, plugins=plugins, device=device, kinds=("reward",)
    )

    from minirlhf.cli.printer import print_evaluation
    from minirlhf.pipeline.build import score_about
    from minirlhf.pipeline.evaluation import reevaluate
    from minirlhf.store.jsonl import json_line

    result, notes = reevaluate(run, config, registry, None if prompts is None else str(Path(prompts).absolute()))
    for note in notes:
        tell(f"warning: {printable(note)}")
    if as_json:
        print(json_line(result.summary | ({"warnings": notes} if notes else {})))
    else:
        tell(score_about(config))
        print_evaluation(result.summary, result.rows[: config.evaluation.samples])
