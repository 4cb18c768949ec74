"""minirlhf bench: the measurements of studies/bench, printed."""

from pathlib import Path
from typing import Any

import click

from minirlhf.cli.fit import wrapped
from minirlhf.cli.lines import shown_rate
from minirlhf.cli.stdio import columns
from minirlhf.store.jsonl import json_line


@click.command("bench")
@click.argument("workloads", nargs=-1, metavar="[W1|W2|W3]...")
@click.option(
    "--against", type=click.Choice(["trl", "hf"]), multiple=True, help="A peer on the same work, in turn with us."
)
@click.option(
    "--peers",
    "environments",
    type=click.Path(path_type=Path),
    default=Path(".peers"),
    show_default=True,
    metavar="DIR",
    help="Where the peers' environments are: DIR/ppo with TRL 1.12.0, DIR/trl with the newest.",
)
@click.option("--turns", type=click.IntRange(1, 1000), default=7, show_default=True, metavar="N", help="Of each.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, metavar="N", help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a measurement and a comparison.")
def command(
    workloads: tuple[str, ...],
    against: tuple[str, ...],
    environments: Path,
    turns: int,
    threads: int,
    device: str,
    as_json: bool,
) -> None:
    """Seconds of an iteration of PPO and of its stages, with random weights; W1 is toy, W2 small, W3 ragged.

    With --against every turn of ours is followed by one of each peer, so that ratios hold when the machine drifts.
    Peers run on the CPU only.
    """
    from minirlhf.errors import UsageError
    from minirlhf.pipeline.build import resolve_device
    from minirlhf.studies.bench.turns import AGAINST, bench
    from minirlhf.studies.bench.workloads import WORKLOADS

    for name in workloads:
        if name not in WORKLOADS:
            raise UsageError(f"there is no workload {name!r}", todo=f"choose from {', '.join(WORKLOADS)}")
    where = str(resolve_device(device))
    if against and where != "cpu":
        raise UsageError("the peers run on the CPU only", "--against, --device", "leave one of them out")
    peers = [peer for group in dict.fromkeys(against) for peer in AGAINST[group]]
    emit = print_json if as_json else print_timing
    for name in workloads or ("W1",):
        bench(WORKLOADS[name], peers, environments, turns, threads, emit, where)


def print_json(event: dict[str, Any]) -> None:
    print(json_line(event), flush=True)


def print_timing(event: dict[str, Any]) -> None:
    """Print one line for an event `measurement` or `comparison`."""
    if event["event"] == "measurement":
        floor = f"  {event['seconds'] / event['floor_seconds']:.2f} x floor" if "floor_seconds" in event else ""
        speed = "" if event["tokens_per_s"] is None else shown_rate(event["tokens_per_s"])
        measured = (
            f"{event['by']:<26} {event['what']:<10} {event['seconds']:8.3f} s "
            f"({event['fastest']:.3f} to {event['slowest']:.3f})  {speed:>18} "
            f"{event['peak_mb']:>6,.0f} MB{floor}"
        )
        print(wrapped(measured, columns(), f"{event['workload']}  "), flush=True)
        return
    ratios = [
        f"{what} {event[f'ratio_{what}']:.2f} x"
        for what in ("iteration", "rollout")
        if event[f"ratio_{what}"] is not None
    ]
    compared = f"{event['peer']} over {event['ours']}: {', '.join(ratios)}, memory of ours {event['ratio_peak_mb']:.0%}"
    print(wrapped(compared, columns(), f"{event['workload']}  "), flush=True)
