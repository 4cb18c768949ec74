"""RewardBatch: finished responses as reward functions see them.

A function gets copies of what it names (texts, ids, columns of the prompt file, tensors of the rollout), so that
nothing it does to them reaches the run. Not here: calling functions and checking what they return (call.py).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from minirlhf.components.component import Built

MODULE_ROWS = 16  # responses at a time for a reward that is an nn.Module


@dataclass(frozen=True)
class TrainerState:
    """Progress of the run in TRL's names: iteration (from 0), number of iterations, their quotient.

    tokenizer_hash: SHA-256 of the policy's tokenizer; a trained reward model compares it with its own.
    """

    global_step: int
    max_steps: int
    epoch: float
    tokenizer_hash: str = ""


@dataclass(frozen=True)
class RewardBatch:
    """n responses; every input is a fresh copy, made only for a function that names it."""

    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    columns: Mapping[str, Sequence[Any]]
    trainer_state: TrainerState
    rollout: Any = None

    def inputs(self, built: Built) -> dict[str, Any]:
        """Copies of the inputs and columns that a reward names."""
        make: dict[str, Callable[[], Any]] = {
            "prompts": lambda: list(self.prompts),
            "completions": lambda: list(self.completions),
            "prompt_ids": lambda: [list(ids) for ids in self.prompt_ids],
            "completion_ids": lambda: [list(ids) for ids in self.completion_ids],
            "trainer_state": lambda: self.trainer_state,
            "rollout": lambda: _copy_rollout(self.rollout),
        }
        columns = {name: copy.deepcopy(list(v)) for name, v in self.columns.items() if built.names(name)}
        return columns | {name: value() for name, value in make.items() if built.names(name)}

    def parts(self, built: Built) -> "list[RewardBatch]":
        """The whole batch, or pieces of MODULE_ROWS responses for an nn.Module."""
        n = len(self.completions)
        if not built.is_module or n <= MODULE_ROWS:
            return [self]
        return [self.rows(start, min(start + MODULE_ROWS, n)) for start in range(0, n, MODULE_ROWS)]

    def rows(self, start: int, stop: int) -> "RewardBatch":
        """Responses start to stop."""
        import torch

        part = slice(start, stop)
        return RewardBatch(
            self.prompts[part],
            self.completions[part],
            self.prompt_ids[part],
            self.completion_ids[part],
            {name: values[part] for name, values in self.columns.items()},
            self.trainer_state,
            None if self.rollout is None else self.rollout.rows(torch.arange(start, stop)),
        )


def _copy_rollout(rollout: Any) -> Any:
    """Copy of a rollout with tensors of its own."""
    if rollout is None:
        return None
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    tensors = {name: value.detach().clone() for name, value in values.items() if hasattr(value, "detach")}
    told = {"columns": copy.deepcopy(dict(rollout.columns)), "spoken": copy.deepcopy(rollout.spoken)}
    return replace(rollout, **tensors, **told)
