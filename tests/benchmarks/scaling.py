"""How the cost of an iteration grows: with responses, with layers, with the length of a response.

    python tests/benchmarks/scaling.py [--turns 5] [--svg docs/scaling.svg]

Around the workload W1, one size at a time. All sizes take turns, so that a machine that drifts drifts for all; what is
shown is the median, as a ratio to that axis's smallest size, beside the ratio of the sizes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from minirlhf.report.pictures import svg
from minirlhf.studies.bench.ours import iterations
from minirlhf.studies.bench.workloads import WORKLOADS, Workload

W1 = WORKLOADS["W1"]
AXES = {
    "responses": (16, 32, 64, 128, 256),
    "layers": (1, 2, 4, 8),
    "response": (24, 48, 96, 144, 192),  # tokens
}


def contestants() -> Iterator[tuple[str, int, Workload]]:
    """Axis, size, workload."""
    for axis, sizes in AXES.items():
        for size in sizes:
            yield axis, size, replace(W1, **{axis: size})


def measure(turns: int) -> dict[str, list[tuple[int, float]]]:
    """Axis -> (size, median seconds of an iteration); the first turn of each is not counted."""
    running = [(axis, size, iterations(work), list[float]()) for axis, size, work in contestants()]
    for turn in range(turns + 1):
        for _, _, iteration, seconds in running:
            found = next(iteration)
            if turn:
                seconds.append(found["whole"])
    found: dict[str, list[tuple[int, float]]] = {axis: [] for axis in AXES}
    for axis, size, _, seconds in running:
        found[axis].append((size, median(seconds)))
    return found


def picture(found: dict[str, list[tuple[int, float]]]) -> str:
    """A panel an axis: seconds against the size, and the line through the origin and the largest size."""

    def draw(figure: Any) -> None:
        names = {"responses": "responses", "layers": "layers", "response": "tokens of a response"}
        for axes, (axis, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
            sizes, seconds = zip(*points, strict=True)
            axes.plot([0, sizes[-1]], [0, seconds[-1]], color="grey", linestyle=":", label="proportional")
            axes.plot(sizes, seconds, marker="o", markersize=4)
            axes.set(xlabel=names[axis], xlim=(0, None), ylim=(0, None))
        figure.axes[0].set_ylabel("seconds of an iteration")
        figure.axes[0].legend()

    return svg(draw, (10, 3.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.turns)
    for axis, points in found.items():
        (least, base), *_ = points
        for size, seconds in points:
            print(f"{axis:<10} {size:>4}  {seconds:7.3f} s   {seconds / base:6.2f} x for {size / least:5.2f} x")
    if options.svg:
        options.svg.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
