"""Rollout and PolicyOutput: sampled responses, and a forward pass over them. Experience (rl/experience.py) holds both.

Shape letters, everywhere in the project: B responses, P prompt tokens, R response tokens, V vocabulary, L layers,
H heads, D head size, W width. Index t of the R axis: state = prompt + response[:t], action = response[t]; its logits
and its value come from position P-1+t of the sequence.

Frozen dataclasses, checked once when they are built; no dictionaries of tensors. Not here: any computation of the
algorithm (ppo.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.packing import Packing
from minirlhf.text.tokenizer import Conversation


def check_array(name: str, tensor: Tensor, shape: tuple[int, ...], kind: str) -> None:
    """Check shape and dtype of a tensor (ValueError); kind: bool, long or float."""
    right = {
        "bool": tensor.dtype == torch.bool,
        "long": tensor.dtype == torch.long,
        "float": tensor.is_floating_point(),
    }[kind]
    if tuple(tensor.shape) != shape or not right:
        raise ValueError(f"{name} must be {kind} of shape {shape}, got {tensor.dtype} of {tuple(tensor.shape)}")


@dataclass(frozen=True)
class Rollout:
    """B responses that the policy sampled, with their prompts.

    prompt_ids (B,P) left-padded, prompt_mask (B,P): True = real token. response_ids (B,R), response_mask (B,R): True =
    real token, attended to. mask (B,R): True = token that the policy chose, EOS included; KL, advantages and loss are
    over it. terminated (B,): EOS was sampled. group (B,): index of the prompt. prompts, completions: B texts. columns:
    other fields of each prompt's row, B values each. sizes: (prompt, response) lengths in tokens, on the CPU; counted
    once if they are not given. spoken: B conversations that the prompts were, None for a plain text.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    mask: Tensor
    terminated: Tensor
    group: Tensor
    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]
    sizes: tuple[tuple[int, int], ...] = ()
    spoken: tuple[Conversation | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes:
            real = torch.stack([self.prompt_mask.sum(dim=1), self.response_mask.sum(dim=1)], dim=1)
            object.__setattr__(self, "sizes", tuple((p, r) for p, r in real.tolist()))
        (b, p), r = self.prompt_ids.shape, self.response_ids.shape[1]
        check_array("prompt_ids", self.prompt_ids, (b, p), "long")
        check_array("prompt_mask", self.prompt_mask, (b, p), "bool")
        check_array("response_ids", self.response_ids, (b, r), "long")
        check_array("response_mask", self.response_mask, (b, r), "bool")
        check_array("mask", self.mask, (b, r), "bool")
        check_array("terminated", self.terminated, (b,), "bool")
        check_array("group", self.group, (b,), "long")
        for name, texts in {"prompts": self.prompts, "completions": self.completions, **self.columns}.items():
            if len(texts) != b:
                raise ValueError(f"{name} must hold {b} values, got {len(texts)}")

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    def rows(self, index: Tensor) -> "Rollout":
        """Rows of `index` (b,), in its order. An index on the CPU is read without waiting for a device."""
        order, at = index.tolist(), index.to(self.mask.device)
        tensors = {f.name: getattr(self, f.name)[at] for f in fields(self) if f.name in _ROLLOUT_TENSORS}
        return Rollout(
            **tensors,
            prompts=tuple(self.prompts[i] for i in order),
            completions=tuple(self.completions[i] for i in order),
            columns={name: tuple(values[i] for i in order) for name, values in self.columns.items()},
            sizes=tuple(self.sizes[i] for i in order),
            spoken=tuple(self.spoken[i] for i in order if self.spoken),
        )

    @cached_property
    def tokens(self) -> "Tokens":
        """Prompts and responses end to end, without padding."""
        return Tokens.of(self)

    def keeping(self, valid: Tensor) -> "Rollout":
        """The same rollout with an empty mask in rows outside `valid` (B,): they leave every mean and loss."""
        return replace(self, mask=self.mask & valid.unsqueeze(1))

    @cached_property
    def prompt_id_lists(self) -> list[list[int]]:
        """B lists of the prompts' ids, without padding."""
        return [ids[keep].tolist() for ids, keep in zip(self.prompt_ids, self.prompt_mask, strict=True)]

    @cached_property
    def completion_id_lists(self) -> list[list[int]]:
        """B lists of the sampled ids, without padding, EOS included."""
        return [ids[keep].tolist() for ids, keep in zip(self.response_ids, self.response_mask, strict=True)]


@dataclass(frozen=True)
class Tokens:
    """N real tokens of a rollout, end to end and without padding, and its n response tokens among them.

    ids (N,); packing: boundaries of the texts (prompt + response); response_ids (n,) in the order of the rows; before
    (n,): index among the N of the state before each response token (the state after the last token of a text is
    `packing.ends`); places (n,): flat index of the response tokens in (B,R).
    """

    ids: Tensor
    packing: Packing
    response_ids: Tensor
    before: Tensor
    places: Tensor

    @classmethod
    def of(cls, rollout: Rollout) -> "Tokens":
        """Tokens of a rollout. A row is padding, prompt, response, padding, so its real tokens are contiguous.

        Their numbers are known on the CPU (`Rollout.sizes`), so nothing waits for the device.
        """
        device, (_, p), r = rollout.prompt_ids.device, rollout.prompt_ids.shape, rollout.response_ids.shape[1]
        prompt, response = torch.tensor(rollout.sizes).T
        packing = Packing.of((prompt + response).tolist(), device)
        first = torch.arange(len(rollout)) * (p + r) + p - prompt  # of each text in the padded rows
        source = _runs(first, prompt + response).to(device, non_blocking=True)
        ends = (prompt + response).cumsum(0) - 1
        before = _runs(ends - response, response).to(device, non_blocking=True)
        places = _runs(torch.arange(len(rollout)) * r, response).to(device, non_blocking=True)
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], dim=1).flatten()[source]
        return cls(ids, packing, ids[before + 1], before, places)


def _runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """Indices start, start + 1, ... of each run, one run after another: (sum of lengths,)."""
    ends = lengths.cumsum(0)
    steps = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
    return starts.repeat_interleave(lengths) + steps


_ROLLOUT_TENSORS = frozenset(
    ["prompt_ids", "prompt_mask", "response_ids", "response_mask", "mask", "terminated", "group"]
)

# Function from rows (a slice, or indices) to their distributions, (b,R,V) log-probs. They are computed on request, so
# that the distributions of no more than a micro-batch ever exist.
LogDist = Callable[[slice | Tensor], Tensor]


@dataclass(frozen=True)
class PolicyOutput:
    """Result of a forward pass over a rollout (N18: probs, all_values, and all_probs on request).

    logprobs (B,R): nats, of the tokens taken, at the sampler's temperature. values (B,R). next_value (B,): V of the
    state after the last real token. entropy() (B,R) nats and log_dist(rows) (see LogDist) are computed on request with
    the weights of that moment: ask before the next optimiser step.
    """

    logprobs: Tensor
    values: Tensor
    next_value: Tensor
    entropy: Callable[[], Tensor]
    log_dist: LogDist

    def __post_init__(self) -> None:
        b, r = self.logprobs.shape
        for name in ("logprobs", "values"):
            check_array(name, getattr(self, name), (b, r), "float")
        check_array("next_value", self.next_value, (b,), "float")
