"""Comparisons judged by a person: pairs of completions of a prompt, and the file of the answers.

Pair number i depends only on the run, the seed and i, so that a file can be continued at the pair after its last line.
A line is a row of JSON that `minirlhf reward-model` reads; a tie has probability 0.5, which no accuracy counts.

Not here: asking the person (cli/label.py).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minirlhf.errors import InputError, UsageError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.store.jsonl import append_line, edited_rows
from minirlhf.store.state import checked_count
from minirlhf.streams import generator
from minirlhf.text.comparisons import TIE, comparison_of
from minirlhf.text.corpus import Prompt
from minirlhf.text.tokenizer import Conversation, Tokenizer

ANSWERS = {"l": "left", "r": "right", "t": "tie", "s": "skip", "u": "undo", "q": "quit"}
TRIES = 8  # draws of one pair until its completions differ


@dataclass(frozen=True)
class PairToJudge:
    """Two completions of a prompt, with the number of the pair; spoken: the conversation that they answer, if any."""

    index: int
    prompt: str
    left: str
    right: str
    spoken: Conversation | None = None

    def judged(self, answer: str) -> dict[str, Any]:
        """Row of the file for an answer: left, right or tie."""
        chosen, rejected = (self.right, self.left) if answer == "right" else (self.left, self.right)
        prompt = [dict(message) for message in self.spoken] if self.spoken else self.prompt
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "index": self.index, "answer": answer}
        return row | ({"probability": 0.5} if answer == "tie" else {})


@dataclass(frozen=True)
class PairSampler:
    """Draws pair number i of a policy: a prompt by seed and i, and two completions of it."""

    policy: Policy
    tokenizer: Tokenizer
    prompts: list[Prompt]
    max_new_tokens: int
    seed: int

    def __call__(self, index: int) -> PairToJudge:
        """Pair number `index`, or the next one whose completions differ. InputError if those of no prompt do."""
        for number in range(index, index + len(self.prompts)):
            pair = self._drawn(number)
            if pair is not None:
                return pair
        todo = "give other --prompts, or another side --from"
        raise InputError("both completions are the same, again and again", self.prompts[0].text, todo)

    def _drawn(self, index: int) -> PairToJudge | None:
        """Pair number `index`, None if both completions are equal or one is empty in all TRIES."""
        order = torch.randperm(len(self.prompts), generator=generator(self.seed, "label/prompts", 0)).tolist()
        prompt = self.prompts[order[index % len(order)]]
        device = self.policy.model.embed_tokens.weight.device
        batch = PromptBatch.build(
            [prompt.text], [{}], self.tokenizer, spoken=[prompt.spoken], responses=2, device=device
        )
        for attempt in range(TRIES):
            random = generator(self.seed, f"label/{attempt}", index)
            rollout = generate(self.policy, batch, self.tokenizer, max_new_tokens=self.max_new_tokens, generator=random)
            left, right = rollout.completions
            if left != right and left.strip() and right.strip():
                # Without a template the completions go on from the text, which a row of messages would not keep.
                return PairToJudge(index, prompt.text, left, right, prompt.spoken if self.tokenizer.chat else None)
        return None


class LabelFile:
    """File of comparisons: read when opened, one row appended or taken back at a time, always complete on disk.

    Nothing but its own last row is ever changed, so that what somebody else has appended meanwhile is not lost. The
    caller holds its lock. InputError for a line that `minirlhf label` did not write.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        self._places = list[tuple[int, int]]()  # bytes of the file before each row, and with it
        if path.exists():
            starts, size = list[int](), path.stat().st_size
            for start, where, row in edited_rows(path):
                self.rows.append(checked_label(row, where))
                starts.append(start)
            self._places = list(zip(starts, [*starts[1:], size], strict=False))

    @property
    def next_index(self) -> int:
        """Number of the pair after the last line."""
        return self.rows[-1]["index"] + 1 if self.rows else 0

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk before the next pair is shown."""
        self._places.append(append_line(self.path, json.dumps(row, ensure_ascii=False)))
        self.rows.append(row)

    def undo(self) -> int | None:
        """Remove the last row; returns the number of its pair, None if there is no row.

        UsageError if that row is not the last of the file, because somebody else has changed it meanwhile.
        """
        if not self.rows:
            return None
        start, size = self._places[-1]
        if not self.path.is_file() or self.path.stat().st_size != size:
            todo = "what you answered is in it; undo it there"
            raise UsageError("somebody else has changed the file meanwhile", str(self.path), todo)
        os.truncate(self.path, start)
        self._places.pop()
        index: int = self.rows.pop()["index"]
        return index


MEND = "mend the line, or give another --out"


def checked_label(row: Any, where: str) -> dict[str, Any]:
    """A row as `PairToJudge.judged` makes it; InputError for any other."""
    if isinstance(row, dict):
        row = {name: value for name, value in row.items() if value is not None}  # null means absent, as in any row
    try:
        checked_count(row["index"])
    except (KeyError, TypeError, ValueError):
        what = "not a line of `minirlhf label` (no index, a whole number from 0)"
        raise InputError(what, where, MEND) from None
    read, fault = comparison_of(row, where, "strict")  # as `minirlhf reward-model` will read it
    answer = row.get("answer")
    if not row.get("prompt"):
        fault = "it has no prompt"
    elif answer is not None and answer not in ("left", "right", "tie"):
        fault = f"its answer is {str(answer)[:20]!r}, not left, right or tie"
    elif answer is not None and (answer == "tie") != (read.probability == TIE):
        fault = f"its answer is {answer!r}, and its probability {read.probability:g}"
    if fault:
        raise InputError(f"not a line of `minirlhf label` ({fault})", where, MEND)
    return dict(row)
