"""A batch of finished responses as reward functions see it: copies of texts, ids, columns and tensors."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from minirlhf.components.component import Built

MODULE_ROWS = 16  # an nn.Module gets so many responses at a time


@dataclass(frozen=True)
class TrainerState:
    """Where the run stands, in TRL's names: iteration (from 0) of how many, and their quotient; and the SHA-256 of the
    policy's tokenizer, by which a reward model knows whether the ids are its own."""

    global_step: int
    max_steps: int
    epoch: float
    tokenizer_hash: str = ""


@dataclass(frozen=True)
class RewardBatch:
    """n responses as reward functions see them; every read is a fresh copy, made only if it is asked for."""

    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    columns: Mapping[str, Sequence[Any]]
    trainer_state: TrainerState
    rollout: Any

    def inputs(self, built: Built) -> dict[str, Any]:
        """The inputs and columns that a reward names, copied."""
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
        """The whole, or pieces that fit an nn.Module."""
        n = len(self.completions)
        if not built.is_module or n <= MODULE_ROWS:
            return [self]
        return [self.rows(start, min(start + MODULE_ROWS, n)) for start in range(0, n, MODULE_ROWS)]

    def rows(self, start: int, stop: int) -> "RewardBatch":
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
    """The same rollout with tensors of its own."""
    if rollout is None:
        return None
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    tensors = {name: value.detach().clone() for name, value in values.items() if hasattr(value, "detach")}
    return replace(rollout, **tensors, columns=copy.deepcopy(dict(rollout.columns)))
