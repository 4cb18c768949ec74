"""Texts of different lengths without padding: the tokens of a batch end to end, and where each of them belongs.

Everything that is done token by token (embeddings, projections, norms, heads) runs on N real tokens. Only attention
needs a grid of rows; there a text begins at slot 0, so that a causal mask is all it takes for padding never to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where N tokens of several texts are.

    positions (N,) of each within its text; places (N,) of each in a grid of `rows` x `width`, row by row; ends (rows,)
    where each text's last token is among the N.
    """

    rows: int
    width: int
    positions: Tensor
    places: Tensor
    ends: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> "Packing":
        """Texts of these lengths, each at least 1. Made on the CPU: no device is asked for anything."""
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0) - 1
        rows, width = len(lengths), int(sizes.max())
        positions = torch.arange(int(sizes.sum())) - (ends + 1 - sizes).repeat_interleave(sizes)
        places = positions + (torch.arange(rows) * width).repeat_interleave(sizes)
        return cls(rows, width, *(x.to(device, non_blocking=True) for x in (positions, places, ends)))

    @property
    def full(self) -> bool:
        """All texts are of one length: the grid is the same numbers in the same order."""
        return len(self.places) == self.rows * self.width

    def grid(self, tokens: Tensor) -> Tensor:
        """(N,...) -> (rows,width,...), 0 where no token is."""
        shape = (self.rows, self.width, *tokens.shape[1:])
        if self.full:
            return tokens.view(shape)
        empty = tokens.new_zeros(self.rows * self.width, *tokens.shape[1:])
        return empty.index_copy(0, self.places, tokens).view(shape)

    def flat(self, grid: Tensor) -> Tensor:
        """(rows,width,...) -> (N,...)"""
        tokens = grid.flatten(0, 1)
        return tokens if self.full else tokens.index_select(0, self.places)
