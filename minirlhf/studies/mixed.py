"""Cells of one comparison that were made of different things: a file or a version that changed between two calls.

A file that changed after the last run counts, too: the table is then not of what the files say now.

Not here: what a run was made of (pipeline/facts.py; `made_of` in evaluation.json).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minirlhf.pipeline.facts import changed_since
from minirlhf.store.files import read_json
from minirlhf.studies.grid import Variant
from minirlhf.studies.summary import Outcome

NOW = "the file as it is now"
Mixed = dict[str, dict[str, list[str]]]  # a file or package -> its hash or version -> the cells that were made of it


def mixed_cells(outcomes: Mapping[Variant, Outcome], directory: Path) -> Mixed:
    """Find files and packages that are not the same in all finished cells that used them, and now; {} without any."""
    found: Mixed = {}
    for variant, outcome in outcomes.items():
        for seed in outcome.measures:
            made_of = read_json(variant.run_directory(directory, seed) / "evaluation.json").get("made_of")
            for name, value in parts_of(made_of):
                found.setdefault(name, {}).setdefault(value, []).append(f"{variant.label} seed {seed}")
            for path, now in changed_since(made_of).items():
                found[path].setdefault(now[:12], [NOW])
    return {name: cells for name, cells in sorted(found.items()) if len(cells) > 1}


def parts_of(made_of: Any) -> Iterator[tuple[str, str]]:
    """Yield (file, first 12 digits of its SHA-256) and (package, version) of a run; nothing of an older one."""
    for name, value in made_of.items() if isinstance(made_of, dict) else ():
        if isinstance(value, dict):
            yield from ((str(file), str(digest)[:12]) for file, digest in value.items())
        else:
            yield str(name), str(value)


def mixed_warning(mixed: Mixed) -> str:
    """One sentence that says which cells were made of which."""
    parts = [
        f"{name}: " + "; ".join(f"{value} in {', '.join(cells)}" for value, cells in by_value.items())
        for name, by_value in mixed.items()
    ]
    todo = "runs that are kept are not made again: compare in another --out, or remove the runs of the old"
    return f"code, files or versions changed since runs of this comparison ({' | '.join(parts)}); {todo}"
