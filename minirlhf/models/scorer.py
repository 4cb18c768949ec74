"""Reward model: the policy's trunk with a scalar head, read at the last real token (N17).

A text is [BOS] prompt completion, then EOS if the completion ended. Prompt and completion are encoded apart, in
training as in PPO: encoded together, a token could span their border, and PPO would score ids that training never saw.
Saved in Hugging Face's layout of LlamaForSequenceClassification (`score.weight`, one label).

Not here: training it (stages/reward_model.py), and the reward that reads a saved one (builtin/trained.py).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from minirlhf.models.lora import Trunk, head_options
from minirlhf.models.packing import Packing

ROWS = 64  # texts in a batch of `scores`


class Scorer(nn.Module):
    """Trunk and a scalar head without bias: only differences of scores are learned, and a bias cancels in them.

    mean and std, 0-d buffers, normalise a score: those of the reference policy's own responses, once they are known;
    until then 0 and 1. most_tokens: of a batch in `scores`, which a single text may exceed.
    """

    most_tokens: float = math.inf

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.model = trunk
        width = trunk.config.hidden_size
        self.score = nn.Linear(width, 1, bias=False)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.score.to(**head_options(trunk))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "Scorer":
        """Draw the head with std 1/sqrt(W+1) (2009.01325), which makes first scores about 1 in size; returns self."""
        weight = self.score.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * (weight.shape[1] + 1) ** -0.5)
        return self

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores (n,) of n lists of ids, at least float32. A score does not depend on the other texts."""
        device = self.score.weight.device
        packing = Packing.of([len(row) for row in rows], device)
        ids = torch.tensor([token for row in rows for token in row]).to(device)
        # Only the state after the last token has seen the whole text.
        last = self.model.packed(ids, packing)[packing.ends]
        scores: Tensor = self.score(last.to(self.score.weight.dtype)).squeeze(-1)
        return scores if scores.dtype == torch.float64 else scores.float()

    def normalised(self, raw: Tensor) -> Tensor:
        """(raw - mean) / std: (n,) -> (n,)."""
        return (raw - self.mean) / self.std

    def both(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Raw scores (n,), whose differences are log odds, and normalised ones (n,), which a run uses as its reward."""
        raw = self.scores(rows, normalised=False)
        return raw, self.normalised(raw)

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], *, normalised: bool = True) -> Tensor:
        """Scores (n,) of many texts, in batches of similar length, without gradients; normalised or raw."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = torch.zeros(len(rows), dtype=self.score.weight.dtype, device=self.score.weight.device)
        for part in portions(order, [len(row) for row in rows], self.most_tokens):
            out[part] = self([rows[i] for i in part]).to(out.dtype)
        return self.normalised(out) if normalised else out


def portions(order: Sequence[int], lengths: Sequence[int], most_tokens: float) -> Iterator[list[int]]:
    """Yield the texts of `order` in batches of at most ROWS texts and most_tokens tokens (of one text: any number)."""
    part, tokens = list[int](), 0
    for text in order:
        if part and (len(part) == ROWS or tokens + lengths[text] > most_tokens):
            yield part
            part, tokens = [], 0
        part.append(text)
        tokens += lengths[text]
    if part:
        yield part


class Ensemble(nn.Module):
    """Several scorers of the same texts, each normalised by its own moments: a guard against over-optimisation.

    Where the members agree, a score can be trusted; a policy that exploits an error of one of them makes them disagree
    (2310.02743).
    """

    def __init__(self, members: Sequence[Scorer]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def longest(self) -> int:
        """Longest text, in tokens, that every member can read."""
        return min(scorer.model.config.max_position_embeddings for scorer in self.scorers())

    def each(self, rows: Sequence[Sequence[int]], *, normalised: bool = True) -> Tensor:
        """Scores (k,n) of n texts by each of the k members."""
        return torch.stack([scorer.scores(rows, normalised=normalised) for scorer in self.scorers()])

    def both(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Means over the members (n,) of the raw scores, and of the normalised ones."""
        raw = self.each(rows, normalised=False)
        each = [scorer.normalised(scores) for scorer, scores in zip(self.scorers(), raw, strict=True)]
        return raw.mean(dim=0), torch.stack(each).mean(dim=0)

    def scorers(self) -> Iterator[Scorer]:
        for member in self.members:
            assert isinstance(member, Scorer)
            yield member
