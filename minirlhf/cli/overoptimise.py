"""minirlhf overoptimise: its progress and its curves. Running and measuring is in studies/overoptimise.py."""

from pathlib import Path
from typing import Any

import click

from minirlhf.cli.compare import Progress
from minirlhf.cli.fit import wrapped
from minirlhf.cli.lines import tell
from minirlhf.cli.options import check_picture, jobs_option, overrides, some_options
from minirlhf.cli.stdio import columns
from minirlhf.store.jsonl import json_line


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Option type: numbers separated by commas, without repeats."""

    name = "numbers"

    def __init__(self, kind: click.IntRange | click.FloatRange) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = [self._kind(part.strip(), param, ctx) for part in str(value).split(",")]
        if len(set(found)) < len(found):
            self.fail(f"{value} names one of them twice.", param, ctx)
        return tuple(found)


@click.command("overoptimise")
@click.argument("preset", default="overoptimise", metavar="[PRESET|FILE.toml]")
@click.option(
    "--pairs",
    type=Numbers(click.IntRange(2)),
    default="300,6000",
    show_default=True,
    metavar="N,...",
    help="Comparisons that reward models learn from.",
)
@click.option(
    "--coefs",
    type=Numbers(click.FloatRange(0)),
    default="0.3,0.15,0.08,0.04,0.02,0.01",
    show_default=True,
    metavar="B,...",
    help="KL coefficients; a run each.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of everything.")
@click.option(
    "--best-of",
    "samples",
    type=click.IntRange(2, 4096),
    default=128,
    show_default=True,
    metavar="N",
    help="Best-of-n for n up to N.",
)
@some_options("sets", "plugins", "device")
@jobs_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the runs are; the same DIR again goes on."
)
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw both scores against sqrt(KL).")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: warnings, curves, the directory.")
def command(
    preset: str,
    pairs: tuple[int, ...],
    coefs: tuple[float, ...],
    seeds: int,
    samples: int,
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    jobs: int | None,
    out: Path | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Find where the reward model's score and the true score part: proxy and truth against the KL that was spent.

    Every seed draws so many comparisons and trains its own reward model; PPO is run on it at every coefficient, and
    best-of-n beside it. The hidden true score is that of the packaged corpus reviews.
    """
    if svg is not None:
        check_picture(svg)

    from minirlhf.studies.compare import default_directory
    from minirlhf.studies.overoptimise import cells_of, overoptimise

    cells = cells_of(preset, pairs, coefs, seeds, options=overrides(device, {}), sets=sets, plugins=plugins)
    directory = (out or default_directory([preset])).absolute()
    progress = Curves(as_json=as_json)
    curves, failure = overoptimise(cells, directory, samples, progress, jobs=jobs)
    if failure is not None:
        raise failure
    if svg is not None:
        from minirlhf.report.pictures import overoptimisation
        from minirlhf.store.files import write_text
        from minirlhf.studies.overoptimise import as_json as plain

        write_text(svg.absolute(), overoptimisation([plain(curve) for curve in curves]))
    progress.finish(seeds, directory)


class Curves(Progress):
    """Event sink: runs to stderr; one table, or one line of JSON, for each curve to stdout."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__([], as_json=False)
        self._json, self._shared = as_json, dict[str, list[str]]()

    def _warning(self, e: dict[str, Any]) -> None:
        super()._warning(e)
        if self._json:
            print(json_line(e), flush=True)

    def _compare_finished(self, e: dict[str, Any]) -> None:
        """Print nothing: the curves replace the table of the comparison. What the seeds share is said behind them."""
        self._shared = e["shared"]

    def _best_of(self, e: dict[str, Any]) -> None:
        tell(f"best of n: {e['samples']} responses to each of {e['prompts']} held-out prompts")

    def _curve(self, e: dict[str, Any]) -> None:
        if self._json:
            print(json_line(e), flush=True)
            return
        print(f"\n{e['pairs']:,} comparisons, held-out accuracy {e['accuracy']:.3f}")
        print(f"{'':<14} {'KL, nats':>9} {'sqrt(KL)':>9} {'proxy':>16} {'true score':>16}")
        for name, key in (("beta", "points"), ("best of", "best_of")):
            for p in e[key]:
                scores = "".join(f"{plus_minus(p[score], p[f'{score}_ci95']):>17}" for score in ("proxy", "truth"))
                setting = f"{name} {p['setting']:g}"
                print(f"{setting:<14} {p['kl']:>9.2f} {p['distance']:>9.2f}{scores}")
        verdict = (
            f"rank correlation of proxy and sqrt(KL) {e['spearman']:.2f}; true score at most {e['peak']:+.2f} (KL "
            f"{e['peak_kl']:.1f}), at the largest KL {e['end']:+.2f}: lost {plus_minus(e['fall'], e['fall_ci95'])}"
        )
        print(wrapped(verdict, columns(), hang=2))

    def finish(self, seeds: int, directory: Path) -> None:
        """Print the directory, and before it which intervals these are and what the seeds share."""
        from minirlhf.studies.shared import shared_sentence

        if self._json:
            found = {"event": "overoptimise_finished", "out_dir": str(directory), "shared": self._shared}
            print(json_line(found), flush=True)
            return
        if seeds > 1:
            print(f"\n±: 95 %, Student's t over the seeds.\n{shared_sentence(self._shared)}")
        print(f"\n{directory}")


def plus_minus(value: float, ends: list[float] | None) -> str:
    """Value ± half of its interval, without it where there is one seed: +1.23 ± 0.04."""
    return f"{value:+.2f}" if ends is None else f"{value:+.2f} ± {(ends[1] - ends[0]) / 2:.2f}"
