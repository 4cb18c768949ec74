"""A reward model's reliability as SVG: how often it is right when it says so. Needs matplotlib (the extra `plot`)."""

import io
from typing import Any


def picture(report: dict[str, Any]) -> str:
    """The SVG of a report's reliability table: stated against observed, the diagonal is perfect; dots grow with pairs.

    The same report gives the same bytes. Raises ModuleNotFoundError without matplotlib.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = report["reliability"]
    with matplotlib.rc_context({"svg.hashsalt": "minirlhf", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5, 4.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(title=f"accuracy {report['accuracy']:.3f}, ECE {report['ece']:.3f}")
        axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":", label="perfect")
        x, y = [row["stated"] for row in rows], [row["right"] for row in rows]
        sizes = [20 + 400 * row["pairs"] / report["pairs"] for row in rows]
        axes.scatter(x, y, s=sizes, alpha=0.6)
        axes.plot(x, y, linewidth=0.8)
        axes.set_xlabel("how sure it is of the side that it prefers")
        axes.set_ylabel("how often it is right")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().decode()
