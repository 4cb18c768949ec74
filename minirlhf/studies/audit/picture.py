"""Picture of an audit: bias against variance, one panel for each kind, as SVG. Needs matplotlib (the extra `plot`).

Not here: the audit (kl.py, advantage.py, loss.py) and the table of its numbers (cli/audit.py).
"""

from typing import Any

from minirlhf.report.pictures import svg

FLOOR = 1e-8  # smaller biases are rounding, and are drawn here: the axis is logarithmic
TITLES = {"kl": "KL estimators: gradient", "advantage": "advantage functions: gradient", "loss": "policy losses"}
MARKS = {"reward": "o", "loss": "s", "both": "^", "exact": "o", "zero": "s", "noisy": "^", "unused": "D"}


def picture(rows: list[dict[str, Any]]) -> str:
    """Draw an audit's rows as SVG: relative bias over relative variance of the gradient; for losses over the drift.

    The same rows give the same bytes. Raises ModuleNotFoundError without matplotlib.
    """
    kinds = [kind for kind in TITLES if any(row["kind"] == kind for row in rows)]

    def draw(figure: Any) -> None:
        for number, kind in enumerate(kinds, start=1):
            axes = figure.add_subplot(1, len(kinds), number, title=TITLES[kind])
            _panel(axes, kind, [row for row in rows if row["kind"] == kind and "gradient_bias" in row])

    return svg(draw, (7.2 * max(1, len(kinds)), 4.8))


def _panel(axes: Any, kind: str, rows: list[dict[str, Any]]) -> None:
    across = "distance" if kind == "loss" else "gradient_variance"
    axes.set_xlabel("KL(policy, old), nats" if kind == "loss" else "variance of one response's gradient")
    axes.set_ylabel("bias, tokens held back left out" if kind == "loss" else "bias")
    axes.set_yscale("log")
    axes.set_xscale("symlog", linthresh=1e-3) if kind == "loss" else axes.set_xscale("log")
    for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = [row for row in rows if row["name"] == name]
        colour = f"C{number % 10}"
        if kind == "loss":
            heights = [max(row["gradient_bias"], FLOOR) for row in mine]
            axes.plot([row[across] for row in mine], heights, color=colour, marker=".", label=name)
            continue
        for mark in dict.fromkeys(row.get("place") or row["values"] for row in mine):
            these = [row for row in mine if (row.get("place") or row["values"]) == mark]
            x, y = [row[across] for row in these], [max(row["gradient_bias"], FLOOR) for row in these]
            axes.plot(x, y, color=colour, marker=MARKS[mark], linestyle=":", alpha=0.8, label=f"{name}, {mark}")
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
