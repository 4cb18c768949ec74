"""Experience: everything the epochs of an iteration learn from (rollouts and shape letters: models/rollout.py)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from minirlhf.models.rollout import LogDist, PolicyOutput, Rollout, check_array
from minirlhf.rewards.shape import ShapedScores
from minirlhf.tensors import Whitened


@dataclass(frozen=True)
class Experience:
    """Everything that the epochs of an iteration learn from: built once, complete and frozen.

    old_logprobs, ref_logprobs, old_values (B,R) of the policy that sampled and of the reference; kl (B,R) nats a token;
    scores (B,) after the rules; rewards, returns (B,R); advantages (B,R) whitened; ref_log_dist: distributions of the
    reference, on request; slot_returns (B,): target of V behind the EOS where the score lands there (NaN for rows
    without one); whole_length (0-d): `mean_length` of the whole rollout if this is a part of it. Shapes and dtypes are
    checked (ValueError).
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
    whole_length: Tensor | None = None

    def __post_init__(self) -> None:
        b, r = self.rollout.mask.shape
        if self.slot_returns is not None:
            check_array("slot_returns", self.slot_returns, (b,), "float")
        for name in PER_TOKEN:
            tensor = getattr(self, name)
            check_array(name, tensor, (b, r), "float")
            if tensor.requires_grad:
                raise ValueError(f"{name} must not require grad: an experience is data, not a graph")
        check_array("scores", self.scores, (b,), "float")

    @classmethod
    def build(
        cls,
        shaped: ShapedScores,
        active: PolicyOutput,
        reference: PolicyOutput,
        kl: Tensor,
        rewards: Tensor,
        whitened: Whitened,
        returns: Tensor,
    ) -> "Experience":
        """Experience of a rollout from its parts: shaped scores, the forward passes of both models, (B,R) tensors."""
        return cls(
            rollout=shaped.rollout,
            old_logprobs=active.logprobs,
            ref_logprobs=reference.logprobs,
            old_values=active.values,
            kl=kl,
            scores=shaped.scores,
            rewards=rewards,
            advantages=whitened.advantages,
            returns=returns,
            ref_log_dist=reference.log_dist,
            slot_returns=shaped.slot_returns,
        )

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def mask(self) -> Tensor:
        return self.rollout.mask

    @property
    def mean_length(self) -> Tensor:
        """Tokens a response, 0-d: mean over the responses of the whole rollout that have a token to learn from."""
        if self.whole_length is not None:
            return self.whole_length
        return self.mask.sum() / self.mask.any(dim=1).sum().clamp(min=1)

    @cached_property
    def learnable(self) -> list[bool]:
        """True for each row that has a token to learn from; read from the device once."""
        found: list[bool] = self.mask.any(dim=1).tolist()
        return found

    def rows(self, index: Tensor) -> "Experience":
        """Rows of `index` (b,), in its order."""
        at, whole = index.to(self.mask.device), self.ref_log_dist
        tensors = {name: getattr(self, name)[at] for name in (*PER_TOKEN, "scores")}
        tensors["whole_length"] = self.mean_length
        if self.slot_returns is not None:
            tensors["slot_returns"] = self.slot_returns[at]
        return replace(self, rollout=self.rollout.rows(index), ref_log_dist=lambda part: whole(index[part]), **tensors)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator["Experience"]:
        """Yield all rows once in a random order, `size` at a time; the last minibatch may be smaller.

        A minibatch whose rows are all masked teaches nothing and is left out.
        """
        order = torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            part = order[start : start + size]
            if any(self.learnable[i] for i in part.tolist()):
                yield self.rows(part)

    def micro_batches(self, size: int) -> Iterator[tuple[slice, "Experience"]]:
        """Yield all rows in order, `size` at a time, each part with its slice of the minibatch."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.rows(torch.arange(part.start, part.stop))


PER_TOKEN = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
