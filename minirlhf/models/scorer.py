"""The reward model: the policy's trunk with a scalar head, read at the last real token (N17).

A text is [BOS] prompt completion, and EOS behind a completion that ended: prompt and completion encoded apart, in
training as in PPO, so that what is scored is what was learned from. Saved in Hugging Face's layout of
LlamaForSequenceClassification (`score.weight`, one label).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from minirlhf.models.packing import Packing
from minirlhf.models.transformer import Transformer

ROWS = 64  # texts scored at a time


class Scorer(nn.Module):
    """Trunk and a bias-free scalar head, Normal(0, 1/(W+1)): first scores are near 0 and of the size of the inputs.

    mean and std, both numbers, normalise a score: those of the reference policy's own responses, once they are known.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Transformer) -> None:
        super().__init__()
        self.model = trunk
        width = trunk.config.hidden_size
        self.score = nn.Linear(width, 1, bias=False)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.score.to(trunk.embed_tokens.weight)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "Scorer":
        """A fresh head (2009.01325)."""
        weight = self.score.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * (weight.shape[1] + 1) ** -0.5)
        return self

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores (n,) of n lists of ids, before normalisation; what else is in the batch changes nothing."""
        device = self.score.weight.device
        packing = Packing.of([len(row) for row in rows], device)
        ids = torch.tensor([token for row in rows for token in row]).to(device)
        scores: Tensor = self.score(self.model.packed(ids, packing)[packing.ends]).squeeze(-1)
        return scores if scores.dtype == torch.float64 else scores.float()

    def normalised(self, raw: Tensor) -> Tensor:
        """(score - mean) / std of scores (n,) as they are."""
        return (raw - self.mean) / self.std

    def both(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Scores (n,) as they are, whose differences are log odds, and normalised, which is what a run is given."""
        raw = self.scores(rows, normalised=False)
        return raw, self.normalised(raw)

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]], *, normalised: bool = True) -> Tensor:
        """Scores (n,) of many texts, ROWS of similar length at a time, normalised or as they are."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = torch.zeros(len(rows), dtype=self.score.weight.dtype, device=self.score.weight.device)
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            out[part] = self([rows[i] for i in part]).to(out.dtype)
        return self.normalised(out) if normalised else out


class Ensemble(nn.Module):
    """Several scorers of one kind of text, each normalised by its own moments (2310.02743: against over-optimisation).

    Where they agree a score can be trusted; where a policy has found what only some of them like, they do not.
    """

    def __init__(self, members: Sequence[Scorer]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def longest(self) -> int:
        """Tokens that every member can read."""
        return min(scorer.model.config.max_position_embeddings for scorer in self._scorers())

    def each(self, rows: Sequence[Sequence[int]], *, normalised: bool = True) -> Tensor:
        """Scores (k,n) of n texts by each of k members."""
        return torch.stack([scorer.scores(rows, normalised=normalised) for scorer in self._scorers()])

    def both(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Their means (n,): of the scores as they are, and of the normalised ones."""
        raw = self.each(rows, normalised=False)
        each = [scorer.normalised(scores) for scorer, scores in zip(self._scorers(), raw, strict=True)]
        return raw.mean(dim=0), torch.stack(each).mean(dim=0)

    def _scorers(self) -> Iterator[Scorer]:
        for member in self.members:
            assert isinstance(member, Scorer)
            yield member
