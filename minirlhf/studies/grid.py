"""The grid of a comparison: variants (presets x values of the varied keys) x seeds, each cell with its configuration.

Not here: running the cells (compare.py, cell_runs.py) and their measures (summary.py).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minirlhf.components.registry import Registry
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.config.values import toml_value
from minirlhf.errors import ConfigError, UsageError
from minirlhf.text.files import unmarked

RESULT = "compare.json"
LONGEST = 100  # characters of a variant's directory name: file systems allow 255 bytes, a hash may follow


@dataclass(frozen=True)
class Variant:
    """A preset or file with one value for every varied key.

    chosen: (key, text of its value) for each of them; label: its name in tables; directory: its folder in OUT.
    """

    preset: str
    chosen: tuple[tuple[str, str], ...]
    label: str
    directory: str

    def plain(self) -> dict[str, Any]:
        """Preset and values, ready for JSON."""
        values = {key: json.loads(json.dumps(toml_value(text), default=str)) for key, text in self.chosen}
        return {"preset": self.preset, **values}

    def run_directory(self, out: Path, seed: int) -> Path:
        """OUT/VARIANT/sSEED"""
        return out / self.directory / f"s{seed}"


@dataclass(frozen=True)
class Cell:
    """One run: a variant with a seed, resolved to its configuration and plugins."""

    variant: Variant
    seed: int
    config: Config
    registry: Registry


def variations(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse --vary KEY=a,b,c: key -> texts of its values.

    UsageError for a malformed text, a key given twice, a value given twice, and run.seed.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = unmarked(text).partition("=")
        key, values = key.strip(), [value.strip() for value in split_values(listed)]
        if not equals or not all(values) or not all(key.split(".")):
            raise UsageError("expected KEY=VALUE,VALUE,...", f"--vary {text}", "such as --vary kl.coef=0,0.05,0.1")
        if key == "run.seed":
            raise UsageError("run.seed is not varied", f"--vary {text}", "every variant is run with seeds 0 to N-1")
        if key in found:
            raise UsageError(f"{key} is varied twice", f"--vary {text}", "give all its values in one --vary")
        typed = [(isinstance(value, bool), value) for value in map(toml_value, values)]  # True == 1 in Python
        for index, value in enumerate(typed):
            if value in typed[:index]:
                raise UsageError(f"{values[index]} is given twice", f"--vary {text}", "remove one of them")
        found[key] = values
    return found


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes. A quote in the middle of a word does not open a string."""
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = quote == '"' and letter == "\\" and not escaped
        elif letter in "\"'" and (depth or not parts[-1].strip()):
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth = max(0, depth - 1)
        elif letter == "," and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def grid(presets: Sequence[str], varied: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Variants: every preset x every combination of values, the last key fastest. UsageError for a repeated preset."""
    for preset, times in Counter(presets).items():
        if times > 1:
            raise UsageError(f"{preset} is given twice", todo="name each preset or file once")
    combined = [tuple(zip(varied, values, strict=True)) for values in product(*varied.values())]
    choices = list(product(presets, combined))
    names = directory_names(choices)
    variants = []
    for (preset, chosen), name in zip(choices, names, strict=True):
        words = [f"{key}={text}" for key, text in chosen]
        label = " ".join([preset, *words] if len(presets) > 1 or not words else words)
        variants.append(Variant(preset, chosen, label, name))
    return variants


def directory_names(choices: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> list[str]:
    """Directory name of each (preset, chosen): PRESET.KEY=VALUE,... in characters that every file system allows.

    Names that are too long, or equal but for case (or equal to compare.json), end in 8 hex digits of a SHA-256.
    """
    names = []
    for preset, chosen in choices:
        values = ",".join(f"{key}={text}" for key, text in chosen)
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", f"{stem(preset)}.{values}" if values else stem(preset))
        names.append(name.lstrip("._-") or "variant")
    seen = Counter([RESULT, *(name.casefold() for name in names)])
    for index, name in enumerate(names):
        if seen[name.casefold()] > 1 or len(name) > LONGEST:
            digest = hashlib.sha256(json.dumps(choices[index]).encode(errors="replace")).hexdigest()[:8]
            names[index] = f"{name[:LONGEST]}-{digest}"
    return names


def stem(preset: str) -> str:
    """Name of a preset, or of a file without folder and .toml."""
    return Path(preset).stem if preset.endswith(".toml") else preset


def resolve_cells(
    variants: Sequence[Variant],
    seeds: int,
    *,
    options: Mapping[str, Any],
    sets: Sequence[str],
    seeded: Sequence[str] = (),
    **load_options: Any,
) -> list[Cell]:
    """Resolve every variant x seed to its configuration; one ConfigError with the faults of all cells.

    seeded: keys beside run.seed that are set to the cell's seed. load_options: further keywords of `load_config`.
    Plugins are loaded anew for each cell, so that no state is shared between runs.
    """
    cells, faults = [], dict[str, dict[str, None]]()  # fault -> labels of the variants that have it, in order
    for variant, seed in product(variants, range(seeds)):
        own_sets = [*sets, *(f"{key}={text}" for key, text in variant.chosen)]
        try:
            seed_keys = dict.fromkeys(("run.seed", *seeded), seed)
            config, registry = load_config(
                variant.preset, options={**options, **seed_keys}, sets=own_sets, **load_options
            )
            for key in seed_keys:
                section, _, name = key.partition(".")
                if getattr(getattr(config, section), name) != seed:
                    raise UsageError(f"{key} cannot be set here", todo="every variant is run with seeds 0 to N-1")
            cells.append(Cell(variant, seed, config, registry))
        except ConfigError as fault:
            for line in fault.faults:
                faults.setdefault(line, {})[variant.label] = None
        except UsageError as fault:
            faults.setdefault(str(fault), {})[variant.label] = None
    if faults:
        lines = faults.items()
        raise ConfigError([t if len(labels) == len(variants) else f"{next(iter(labels))}: {t}" for t, labels in lines])
    return cells


def cell_directory(out: Path, cell: Cell) -> Path:
    """OUT/VARIANT/sSEED"""
    return cell.variant.run_directory(out, cell.seed)
