"""The cells of a comparison: variants (presets and varied keys) times seeds, each with its own configuration."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from minirlhf.components.registry import Registry
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.config.toml import toml_value
from minirlhf.errors import ConfigError, UsageError

RESULT = "compare.json"
LONGEST = 100  # characters of a variant's directory: a file system takes 255 bytes
Measures = dict[str, float | None]


@dataclass(frozen=True)
class Variant:
    """A preset or file, (key, text of its value) for each key that is varied, and what to call it."""

    preset: str
    chosen: tuple[tuple[str, str], ...]
    label: str
    directory: str

    def plain(self) -> dict[str, Any]:
        """The preset and the values as JSON has them."""
        values = {key: json.loads(json.dumps(toml_value(text), default=str)) for key, text in self.chosen}
        return {"preset": self.preset, **values}


@dataclass(frozen=True)
class Cell:
    """One run: a variant, a seed, and the configuration and plugins that they resolve to."""

    variant: Variant
    seed: int
    config: Config
    registry: Registry


@dataclass
class Outcome:
    """What the cells of a variant gave, by seed: measures, or why there are none."""

    measures: dict[int, Measures] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def variations(texts: Sequence[str]) -> dict[str, list[str]]:
    """KEY=a,b,c, several times -> the texts of each key's values (UsageError for what varies nothing)."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key, values = key.strip(), [value.strip() for value in split_values(listed)]
        if not equals or not all(values) or not all(key.split(".")):
            raise UsageError("expected KEY=VALUE,VALUE,...", f"--vary {text}", "such as --vary kl.coef=0,0.05,0.1")
        if key == "run.seed":
            raise UsageError("run.seed is not varied", f"--vary {text}", "every variant is run with seeds 0 to N-1")
        if key in found:
            raise UsageError(f"{key} is varied twice", f"--vary {text}", "give all its values in one --vary")
        typed = [(isinstance(value, bool), value) for value in map(toml_value, values)]  # because True == 1
        for index, value in enumerate(typed):
            if value in typed[:index]:
                raise UsageError(f"{values[index]} is given twice", f"--vary {text}", "remove one of them")
        found[key] = values
    return found


def split_values(text: str) -> list[str]:
    """The parts between commas that stand outside brackets and quotes; a quote inside a word is only a letter."""
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
    """Each preset with each combination of the values, the last key fastest."""
    for preset, times in Counter(presets).items():
        if times > 1:
            raise UsageError(f"{preset} is given twice", todo="name each preset or file once")
    combined = [tuple(zip(varied, values, strict=True)) for values in product(*varied.values())]
    cells = list(product(presets, combined))
    names = directory_names(cells)
    variants = []
    for (preset, chosen), name in zip(cells, names, strict=True):
        words = [f"{key}={text}" for key, text in chosen]
        label = " ".join([preset, *words] if len(presets) > 1 or not words else words)
        variants.append(Variant(preset, chosen, label, name))
    return variants


def directory_names(cells: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> list[str]:
    """A name for each that every file system takes; one that is too long or not its own ends in a hash."""
    names = []
    for preset, chosen in cells:
        values = ",".join(f"{key}={text}" for key, text in chosen)
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", f"{stem(preset)}.{values}" if values else stem(preset))
        names.append(name.lstrip("._-") or "variant")
    seen = Counter([RESULT, *(name.casefold() for name in names)])
    for index, name in enumerate(names):
        if seen[name.casefold()] > 1 or len(name) > LONGEST:
            digest = hashlib.sha256(json.dumps(cells[index]).encode(errors="replace")).hexdigest()[:8]
            names[index] = f"{name[:LONGEST]}-{digest}"
    return names


def stem(preset: str) -> str:
    """A preset's name, or a file's without its folder and ending."""
    return Path(preset).stem if preset.endswith(".toml") else preset


def resolve(
    variants: Sequence[Variant],
    seeds: int,
    *,
    options: Mapping[str, Any],
    sets: Sequence[str],
    seeded: Sequence[str] = (),
    **given: Any,
) -> list[Cell]:
    """Every cell with the configuration that it will run, or one ConfigError with the faults of all of them.

    `seeded`: keys beside run.seed that are the cell's seed. The other keywords are those of `load_config`. Plugins are
    loaded for each cell, as for each run.
    """
    cells, faults = [], dict[str, dict[str, None]]()
    for variant, seed in product(variants, range(seeds)):
        mine = [*sets, *(f"{key}={text}" for key, text in variant.chosen)]
        try:
            drawn = dict.fromkeys(("run.seed", *seeded), seed)
            config, registry = load_config(variant.preset, options={**options, **drawn}, sets=mine, **given)
            for key in drawn:
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


def place(directory: Path, cell: Cell) -> Path:
    """OUT/VARIANT/sSEED"""
    return directory / cell.variant.directory / f"s{cell.seed}"
