"""Reader of survivors.txt: the mutants that no test can kill, because they are no faults, each with the reason.

A block is a reason and the mutants that it is true of:

    = why they compute the same
    minirlhf/FILE FUNCTION
    - the line as it is
    + the line as the mutant has it (empty: it is left out)

or, for mutants that differ in something that is no fault anywhere, a regular expression of what may differ:

    ~ REGEX
"""

import re
from collections import Counter
from pathlib import Path

FILE = Path(__file__).with_name("survivors.txt")


class Survivors:
    """What survivors.txt explains. known: how often it has each key; rules: the regular expressions; reasons."""

    def __init__(self, text: str) -> None:
        self.known: Counter[str] = Counter()
        self.rules: list[re.Pattern[str]] = []
        self.reasons: dict[str, str] = {}
        place, old, reason = "", "", ""
        for number, line in enumerate(text.splitlines(), 1):
            sign, rest = line[:1], line[1:].strip()
            if sign == "=":
                reason = rest
            elif sign == "~":
                self.rules.append(re.compile(rest))
            elif line.startswith("minirlhf/"):
                place = line.strip()
            elif sign == "-":
                old = rest
            elif sign == "+":
                this = named(place, old, rest)
                self.known[this] += 1
                self.reasons[this] = reason
            elif sign not in ("", "#"):
                raise ValueError(f"{FILE.name}:{number} is no line of a block: {line}")

    def explains(self, this: str) -> bool:
        """True if a mutant is in the file, or differs in what a rule allows; each entry explains one mutant."""
        if self.known[this] > 0:
            self.known[this] -= 1
            return True
        old, new = this.split("\n")[1:]
        return any(rule.sub("", old[2:]) == rule.sub("", new[2:]) for rule in self.rules)


def named(place: str, old: str, new: str) -> str:
    """Key of a mutant: its file and function, and the lines that differ; the same after edits elsewhere."""
    return f"{place}\n- {old}\n+ {new}"
