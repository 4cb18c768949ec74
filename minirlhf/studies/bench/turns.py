"""Turns: contestants in processes of their own run one iteration after the other, so that drift cancels in the ratios.

Not here: the iterations themselves (ours.py, peer.py), and printing (cli/bench.py).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from minirlhf.errors import UsageError
from minirlhf.events import Emit
from minirlhf.studies.bench.floor import floor_seconds
from minirlhf.studies.bench.workloads import Workload

PEER = Path(__file__).with_name("peer.py")
# Peer (a KIND of peer.py) -> (folder of its environment, package to install there).
PEERS = {
    "trl-ppo": ("ppo", "trl==1.12.0"),  # the last TRL with PPO
    "trl-grpo": ("trl", "trl"),
    "hf": ("trl", "trl"),
}
# Value of --against -> peers.
AGAINST = {"trl": ("trl-ppo", "trl-grpo"), "hf": ("hf",)}
STAGES = ("rollout", "score", "learn")


@dataclass
class Contestant:
    """Process that runs one iteration when asked. UsageError with the last line of its log if it has ended."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path

    def turn(self) -> dict[str, float]:
        """Run one iteration; returns its seconds, tokens and memory."""
        assert self.process.stdin is not None, "started with a pipe"
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.died() from None
        return dict(self.read())

    def read(self) -> Any:
        """Next answer of the process."""
        assert self.process.stdout is not None, "started with a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise self.died()
        return json.loads(line)

    def died(self) -> UsageError:
        """Error with the last line of the log."""
        lines = self.log.read_text(errors="replace").strip().split("\n")
        return UsageError(f"{self.name} ended", lines[-1] or "it said nothing", "see `minirlhf bench --help`")


@contextmanager
def contestant(name: str, command: Sequence[str]) -> Iterator[Contestant]:
    """Start a contestant and wait until it is ready; it is killed when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            one = Contestant(name, process, log)
            try:
                one.read()
                yield one
            finally:
                process.kill()
                process.communicate()


def python_of(peer: str, environments: Path) -> str:
    """Path of the Python that has a peer; UsageError with the command that makes its environment."""
    environment, package = PEERS[peer]
    python = environments / environment / "bin" / "python"
    if not python.is_file():
        where = environments / environment
        todo = f"python3 -m venv {where} && {where}/bin/pip install -c constraints.txt torch '{package}'"
        raise UsageError(f"there is no environment with {peer}", str(python), todo)
    return str(python)


def bench(
    work: Workload, peers: Sequence[str], environments: Path, turns: int, threads: int, emit: Emit, device: str = "cpu"
) -> None:
    """Time a workload here and on peers, in turns; emits the events measurement and comparison.

    device: where ours run. The peers, and the floor, are the CPU's.
    """
    pythons = {peer: python_of(peer, environments) for peer in peers}
    critic = replace(work, separate_critic=True)
    own = [sys.executable, "-m", "minirlhf.studies.bench.ours"]
    commands = {"minirlhf": [*own, "minirlhf", json.dumps(work.plain()), str(threads), device]}
    if "trl-ppo" in peers:
        commands["minirlhf, separate critic"] = [*own, "minirlhf", json.dumps(critic.plain()), str(threads)]
    for peer, python in pythons.items():
        commands[peer] = [python, str(PEER), peer, json.dumps(work.plain()), str(threads)]
    with ExitStack() as stack:
        running = [stack.enter_context(contestant(name, command)) for name, command in commands.items()]
        for one in running:  # warm-up: the first iterations fill caches and compile
            one.turn()
            one.turn()
        found: dict[str, list[dict[str, float]]] = {one.name: [] for one in running}
        for _ in range(turns):
            for one in running:
                found[one.name].append(one.turn())
    names = ("default", "onednn") if device == "cpu" else ()
    floors = {f"floor_{name}": floor_seconds(work, onednn=name == "onednn") for name in names}
    for name, rows in found.items():
        for row in measurements(work, name, rows, floors):
            emit(row)
    for peer in peers:
        for ours in ("minirlhf", "minirlhf, separate critic") if peer == "trl-ppo" else ("minirlhf",):
            emit(comparison(work, ours, peer, found))


def measurements(
    work: Workload, name: str, rows: Sequence[Mapping[str, float]], floors: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Events `measurement`, one a stage: medians over the turns; the whole also has the floor, if there is one."""
    known = None if work.eos else work.responses * work.response  # tokens of a peer that does not report them
    for what in ("whole", *STAGES):
        seconds = sorted(row[what] for row in rows if what in row)
        if not seconds:
            continue
        yield {
            "event": "measurement",
            "workload": work.name,
            "by": name,
            "what": "iteration" if what == "whole" else what,
            "seconds": median(seconds),
            "fastest": seconds[0],
            "slowest": seconds[-1],
            "tokens_per_s": per_second([row for row in rows if what in row], what, known),
            "peak_mb": max(row["peak_mb"] for row in rows),
            **({"floor_seconds": min(floors.values()), **floors} if floors and what == "whole" else {}),
        }


def per_second(rows: Sequence[Mapping[str, float]], what: str, known: int | None) -> float | None:
    """Median of tokens per second; None if the number of tokens is unknown."""
    counted = [(row.get("tokens", known), row[what]) for row in rows]
    rates = [tokens / seconds for tokens, seconds in counted if tokens is not None]
    return median(rates) if rates else None


def comparison(
    work: Workload, ours: str, peer: str, found: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    """Event `comparison`: peer's seconds over ours, median over pairs of neighbouring turns; our memory over its."""
    pairs = list(zip(found[ours], found[peer], strict=True))

    def seconds(row: Mapping[str, float], what: str) -> float | None:
        return row.get(what, row["whole"] if peer == "hf" else None)

    def ratio(what: str) -> float | None:
        known = [(seconds(theirs, what), mine[what]) for mine, theirs in pairs]
        quotients = [theirs / mine for theirs, mine in known if theirs is not None]
        return median(quotients) if quotients else None

    return {
        "event": "comparison",
        "workload": work.name,
        "ours": ours,
        "peer": peer,
        "ratio_iteration": None if peer == "hf" else ratio("whole"),
        "ratio_rollout": ratio("rollout"),
        "ratio_peak_mb": found[ours][-1]["peak_mb"] / found[peer][-1]["peak_mb"],
    }
