"""minirlhf report: the page of a run, made anew by report/of_run.py."""

from pathlib import Path

import click

from minirlhf.cli.lines import tell
from minirlhf.cli.options import importing


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--open", "wanted", is_flag=True, help="Show it in the browser.")
def command(run: Path, wanted: bool) -> None:
    """Make RUN/report.html anew, of a run that is finished, stopped or still going on, and print where it is.

    One file, which needs no network: curves, score against KL, before and after, and every token of some responses.
    """
    with importing():
        from minirlhf.report.of_run import write_report

    path = write_report(run).absolute()
    print(path)
    if wanted and click.launch(path.as_uri()) != 0:
        tell("warning: no browser was found; open the file by hand")
