"""Pictures as SVG: the reliability of a reward model, and curves of over-optimisation.

Equal numbers give equal bytes. Needs matplotlib (extra `plot`); ModuleNotFoundError without it. Not here: the curves of
the pages, which uPlot draws in the browser (page.py).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def reliability(report: Mapping[str, Any]) -> str:
    """Reliability diagram of a reward model's report: stated probability against accuracy; dots grow with pairs."""

    def draw(figure: Any) -> None:
        rows = report["reliability"]
        accuracy, ece = report["accuracy"], report["ece"]
        title = "all comparisons are ties" if accuracy is None else f"accuracy {accuracy:.3f}, ECE {ece:.3f}"
        title += f" (a perfectly calibrated model: {report['ece_floor']:.3f})" if "ece_floor" in report else ""
        axes = figure.add_subplot(title=title)
        axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":", label="perfect")
        x, y = [row["stated"] for row in rows], [row["right"] for row in rows]
        axes.scatter(x, y, s=[20 + 400 * row["pairs"] / report["pairs"] for row in rows], alpha=0.6)
        axes.plot(x, y, linewidth=0.8)
        axes.set_xlabel("how sure it is of the side that it prefers")
        axes.set_ylabel("how often it is right")

    return svg(draw, (5, 4.5))


def overoptimisation(curves: Sequence[Mapping[str, Any]]) -> str:
    """Curves of `overoptimise`: proxy (left) and true score (right) against sqrt(KL), one colour for each size of data.

    Solid: PPO; dotted with squares: best-of-n on the same reward models. Both with 95 % intervals (Student's t over the
    seeds): they stand on different numbers of prompts.
    """

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2)
        for axes, name, title in zip(panels, ("proxy", "truth"), ("what is optimised", "what is meant"), strict=True):
            for index, curve in enumerate(curves):
                colour = f"C{index}"
                for key, by, line, mark in (("points", "PPO", "-", "o"), ("best_of", "best of n", ":", "s")):
                    points = curve[key]
                    axes.errorbar(
                        [point["distance"] for point in points],
                        [point[name] for point in points],
                        yerr=[error_bar(point[f"{name}_ci95"]) for point in points],
                        color=colour, linestyle=line, marker=mark, markersize=3, linewidth=1.2, capsize=2,
                        markerfacecolor=colour if mark == "o" else "white",
                        label=f"{curve['pairs']:,} comparisons, {by}, {seeds_of(points)}",
                    )  # fmt: skip
            axes.set_title(title)
            axes.set_xlabel("sqrt(KL), KL in nats per sequence")
        panels[0].set_ylabel("proxy: score of the reward model")
        panels[1].set_ylabel("true score")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return svg(draw, (10, 4.8))


def seeds_of(points: Sequence[Mapping[str, Any]]) -> str:
    """Number of seeds that the points of a curve are means of, in words."""
    count = len(points[0]["by_seed"]) if points else 0
    return "1 seed" if count == 1 else f"{count} seeds"


def error_bar(ends: Sequence[float] | None) -> float:
    """Length of an error bar to each side: half of an interval [low, high]; 0 without one."""
    return 0.0 if ends is None else (ends[1] - ends[0]) / 2


def svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str:
    """SVG text of a figure of this size (inches) that `draw` fills."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "minirlhf", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().decode()
