"""minirlhf export: the policy of a run for other programs. The work is in pipeline/export.py."""

from pathlib import Path

import click


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--merge", is_flag=True, help="Add the adapter to the weights: a whole model, as large as its base.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Such as model.path=DIR for a base that moved.")
def command(run: Path, out: Path, merge: bool, sets: tuple[str, ...]) -> None:
    """Write the policy of a finished RUN into DIR: for transformers, or, of a run with adapters, for PEFT."""
    from minirlhf.cli.lines import tell
    from minirlhf.pipeline.export import export_run

    tell(export_run(run, out, merge=merge, sets=sets))
    print(out)
