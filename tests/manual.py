"""The manual as text: README, the pages of docs/, and the code blocks and tables in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    """One page by its path from the root of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def manual() -> str:
    """README and every page of docs/, one after another."""
    return "\n".join(
        read(path.relative_to(ROOT)) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    )


def blocks(text: str, language: str) -> list[str]:
    """The contents of the code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every `minirlhf ...` line of the bash blocks, without its comment."""
    lines = [line.partition(" #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("minirlhf ")]
