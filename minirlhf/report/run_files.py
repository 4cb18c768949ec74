"""Files of a run as the pages read them: anything that a run did not write is left out, and no plugin is loaded.

Not here: the token log (tokens.py), and what a page shows of all this (of_run.py, of_compare.py).
"""

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.errors import UserError
from minirlhf.report.tokens import is_whole
from minirlhf.store.files import read_json
from minirlhf.store.jsonl import read_rows
from minirlhf.text.files import unmarked


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that have a step, sorted by it."""
    return sorted(
        (r for r in read_rows(directory / "metrics.jsonl") if is_whole(r.get("step"))), key=lambda r: r["step"]
    )


def metric_names(metrics: list[dict[str, Any]]) -> list[str]:
    """Names of all metrics, in the order of their first appearance."""
    return [name for name in dict.fromkeys(name for row in metrics for name in row) if name != "step"]


def metric_values(metrics: list[dict[str, Any]], name: str) -> list[float | None]:
    """Values of one metric over the iterations, None where it was not measured or not finite."""
    return [six_digits(row.get(name)) for row in metrics]


def six_digits(value: Any) -> float | None:
    """Finite number rounded to six significant digits, None for anything else."""
    return float(f"{value:.6g}") if is_finite(value) else None


def is_finite(value: Any) -> bool:
    """True for a finite number of a size that JavaScript and a picture can take."""
    return type(value) in (int, float) and abs(value) < 1e300


def json_or_empty(path: Path) -> dict[str, Any]:
    """JSON object of a file, or an empty one if the file is missing or holds none."""
    with suppress(UserError):
        if path.is_file():
            return read_json(path)
    return {}


def config_text(directory: Path) -> str:
    """Text of config.toml; bytes that are not UTF-8 become U+FFFD."""
    return unmarked((directory / "config.toml").read_text(encoding="utf-8", errors="replace"))


def read_config(directory: Path) -> dict[str, Any]:
    """Parse config.toml without resolving it; empty if it is no TOML."""
    with suppress(ValueError, RecursionError):
        config = tomllib.loads(config_text(directory))
        str(config)  # ValueError for an integer with more digits than Python prints
        return config
    return {}


def config_value(config: dict[str, Any], section: str, key: str) -> Any:
    """Value of a key of a section, None if there is none."""
    values = config.get(section)
    return values.get(key) if isinstance(values, dict) else None
