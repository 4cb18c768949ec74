"""Experience: everything the epochs of an iteration learn from (rollouts and shape letters: models/rollout.py)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from minirlhf.models.rollout import LogDist, Rollout, check_array


@dataclass(frozen=True)
class Experience:
    """Everything the epochs learn from: built once an iteration, complete and frozen.

    rollout; old_logprobs, ref_logprobs, old_values (B,R) from the rollout's policy and the reference; kl (B,R) nats
    a token; scores (B,); rewards, advantages, returns (B,R); ref_log_dist the reference's distributions on request;
    slot_returns (B,) what V behind the EOS should be, where the score lands there (NaN for rows without one).
    """

    rollout: Rollout
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    kl: Tensor
    scores: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    ref_log_dist: LogDist
    slot_returns: Tensor | None = None

    def __post_init__(self) -> None:
        b, r = self.rollout.mask.shape
        if self.slot_returns is not None:
            check_array("slot_returns", self.slot_returns, (b,), "float")
        for name in _PER_TOKEN:
            tensor = getattr(self, name)
            check_array(name, tensor, (b, r), "float")
            if tensor.requires_grad:
                raise ValueError(f"{name} must not require grad: an experience is data, not a graph")
        check_array("scores", self.scores, (b,), "float")

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def mask(self) -> Tensor:
        return self.rollout.mask

    @cached_property
    def learnable(self) -> list[bool]:
        """Which rows have a token to learn from, on the CPU."""
        found: list[bool] = self.mask.any(dim=1).tolist()
        return found

    def rows(self, index: Tensor) -> "Experience":
        """The rows of `index` (b,), in its order."""
        at, whole = index.to(self.mask.device), self.ref_log_dist
        tensors = {name: getattr(self, name)[at] for name in (*_PER_TOKEN, "scores")}
        if self.slot_returns is not None:
            tensors["slot_returns"] = self.slot_returns[at]
        return replace(self, rollout=self.rollout.rows(index), ref_log_dist=lambda part: whole(index[part]), **tensors)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator["Experience"]:
        """All rows once, in a fresh random order, `size` at a time (the last one may be smaller); a minibatch of rows
        that are all masked teaches nothing and is left out."""
        order = torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            part = order[start : start + size]
            if any(self.learnable[i] for i in part.tolist()):
                yield self.rows(part)

    def micro_batches(self, size: int) -> Iterator[tuple[slice, "Experience"]]:
        """All rows in order, `size` at a time, each with its slice of the minibatch."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.rows(torch.arange(part.start, part.stop))


_PER_TOKEN = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
