"""minirlhf compare: its progress and its table. Running and measuring is in studies/compare.py."""

from pathlib import Path
from typing import Any

import click

from minirlhf.cli.fit import table, wrapped
from minirlhf.cli.lines import printable, tell
from minirlhf.cli.options import jobs_option, overrides, some_options
from minirlhf.cli.stdio import columns
from minirlhf.store.jsonl import json_line


@click.command("compare")
@click.argument("presets", nargs=-1, required=True, metavar="PRESET|FILE.toml...")
@click.option("--vary", "varied", multiple=True, metavar="KEY=a,b,c", help="Values to compare, repeatable: a grid.")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Runs of each.")
@click.option("--vary-base", is_flag=True, help="Base, SFT model and reward model anew for each seed.")
@some_options(
    "model", "rewards", "kl", "advantage", "loss", "sets", "plugins", "device"
)  # all of `run` but --seed: every variant has seeds 0 to N-1
@jobs_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the runs are; the same DIR again goes on."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: warnings, the variants, then the directory."
)
def command(
    presets: tuple[str, ...],
    varied: tuple[str, ...],
    seeds: int,
    vary_base: bool,
    rewards: tuple[str, ...],
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    jobs: int | None,
    out: Path | None,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Run presets, or one with several values of a key, over seeds 0 to N-1, and show them side by side.

    Every run is what `minirlhf run PRESET --set KEY=VALUE --seed S` would do. Each variant is held against the first
    one, seed by seed, with a 95 % interval (Student's t). A run that fails is counted, and the others go on.
    """
    from minirlhf.studies.compare import compare, default_directory
    from minirlhf.studies.grid import grid, resolve_cells, variations
    from minirlhf.studies.shared import BASE_SEEDS

    options = overrides(device, flags)
    variants = grid(presets, variations(varied))
    seeded = BASE_SEEDS if vary_base else ()
    cells = resolve_cells(variants, seeds, options=options, sets=sets, seeded=seeded, rewards=rewards, plugins=plugins)
    labels = [variant.label for variant in variants]
    failure = compare(cells, out or default_directory(presets), Progress(labels, as_json=as_json), jobs=jobs)
    if failure is not None:
        raise failure


class Progress:
    """Event sink: cells to stderr as they run; the table, or the rows as JSON lines, to stdout."""

    def __init__(self, labels: list[str], *, as_json: bool) -> None:
        self._labels, self._as_json = labels, as_json
        self._rows: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"_{event['event']}")(event)
        if self._as_json and event["event"] in ("warning", "variant", "compare_finished"):
            print(json_line(event), flush=True)

    def _compare_started(self, e: dict[str, Any]) -> None:
        several = f", {e['jobs']} at once" if e["jobs"] > 1 else ""
        tell(f"{e['cells']} runs in {e['out_dir']}{several}")

    def _warning(self, e: dict[str, Any]) -> None:
        tell(f"warning: {printable(e['message'])}")

    def _cell_started(self, e: dict[str, Any]) -> None:
        tell(cell_title(e))

    def _cell_finished(self, e: dict[str, Any]) -> None:
        from minirlhf.report.page import number

        start = f"{cell_title(e)}: kept" if e["kept"] else f"  {e['seconds']:.1f} s"
        found = e["measures"]
        share = "" if found.get("optimality") is None else f", F {found['optimality']:.4f}"
        gain, kl = found["score_gain"], found["kl_nats_per_sequence"]
        tell(f"{start}, score gain {number(gain, '+.3f')}, KL {kl:.2f} nats{share}")

    def _cell_failed(self, e: dict[str, Any]) -> None:
        tell(f"  failed: {printable(e['message'])}")

    def _variant(self, e: dict[str, Any]) -> None:
        self._rows.append(e)

    def _compare_finished(self, e: dict[str, Any]) -> None:
        if not self._as_json:
            for line in table_lines(self._labels, self._rows, e["judged"]["measure"]):
                print(line)
            notes = (wrapped(printable(note), columns()) for note in e["notes"])
            print("", *notes, "", e["page"], e["out_dir"], sep="\n")


def cell_title(e: dict[str, Any]) -> str:
    """Title of a cell, such as 3/15 advantage.function=gae seed 2."""
    return f"{e['cell']}/{e['cells']} {printable(e['label'])} seed {e['seed']}"


def table_lines(labels: list[str], rows: list[dict[str, Any]], measure: str | None) -> list[str]:
    """Lines of the table of variants and, behind an empty one, of their differences to the first in `measure`.

    Columns that do not fit the terminal continue below.
    """
    from minirlhf.report.of_compare import against_first, table_of

    labels, width = [printable(label) for label in labels], columns()
    heads, found = table_of(labels, rows)
    against = against_first(labels, rows, measure)
    differences = ["", *table([against[0], *against[1]], width, words=(0, 3))] if against else []
    return [*table([heads, *found], width), *differences]
