"""Comparisons from a person: two completions of a prompt, which is better, one JSON line each.

Pair number i depends on the run, the seed and i alone, so that a file can be gone on with: the next pair is the one
behind the last line. A line is what `minirlhf reward-model` reads; a tie is a comparison of probability 0.5.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.store.files import write_text
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt
from minirlhf.text.tokenizer import Tokenizer

ANSWERS = {"l": "left", "r": "right", "t": "tie", "s": "skip", "u": "undo", "q": "quit"}
TRIES = 8  # pairs drawn for one number until their sides differ


@dataclass(frozen=True)
class Shown:
    """A pair to judge: its number, the prompt, both completions."""

    index: int
    prompt: str
    left: str
    right: str

    def judged(self, answer: str) -> dict[str, Any]:
        """The line for an answer: left, right or tie."""
        chosen, rejected = (self.right, self.left) if answer == "right" else (self.left, self.right)
        row = {"prompt": self.prompt, "chosen": chosen, "rejected": rejected, "index": self.index, "answer": answer}
        return row | ({"probability": 0.5} if answer == "tie" else {})


@dataclass(frozen=True)
class Pairs:
    """The pairs of a policy over some prompts, by number."""

    policy: Policy
    tokenizer: Tokenizer
    prompts: list[Prompt]
    max_new_tokens: int
    seed: int

    def __call__(self, index: int) -> Shown:
        """Pair number `index`, or the next one whose sides differ. InputError if those of no prompt do."""
        for at in range(index, index + len(self.prompts)):
            shown = self._drawn(at)
            if shown is not None:
                return shown
        todo = "give other --prompts, or another side --from"
        raise InputError("both completions are the same, again and again", self.prompts[0].text, todo)

    def _drawn(self, index: int) -> Shown | None:
        """Pair number `index`, None if the policy writes the same thing every time."""
        order = torch.randperm(len(self.prompts), generator=generator(self.seed, "label/prompts", 0)).tolist()
        prompt = self.prompts[order[index % len(order)]]
        device = self.policy.model.embed_tokens.weight.device
        batch = PromptBatch.build([prompt.text], [{}], self.tokenizer, responses=2, device=device)
        for attempt in range(TRIES):
            random = generator(self.seed, f"label/{attempt}", index)
            found = generate(self.policy, batch, self.tokenizer, max_new_tokens=self.max_new_tokens, generator=random)
            left, right = found.completions
            if left != right and left.strip() and right.strip():
                return Shown(index, prompt.text, left, right)
        return None


class LabelFile:
    """The lines so far: read when it is opened, appended to one at a time, the last one taken back."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    row = json.loads(line)
                    self.rows.append({**row, "index": int(row["index"])})
                except (ValueError, KeyError, TypeError):
                    where = f"{path}:{number}"
                    raise InputError("not a line of `minirlhf label`", where, "give another --out") from None

    @property
    def next_index(self) -> int:
        """The number of the pair behind the last line."""
        return self.rows[-1]["index"] + 1 if self.rows else 0

    def add(self, row: dict[str, Any]) -> None:
        """One line more, on disk before the next pair is shown."""
        self.rows.append(row)
        self._write()

    def undo(self) -> int | None:
        """Take the last line back; the number of its pair, None if there is no line."""
        if not self.rows:
            return None
        index: int = self.rows.pop()["index"]
        self._write()
        return index

    def _write(self) -> None:
        write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
