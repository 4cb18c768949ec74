"""Texts of different lengths without padding: the tokens of a batch end to end, and where each of them belongs.

Everything that is done token by token (embeddings, projections, norms, heads) runs on N real tokens. Only attention
needs a grid of rows; there a text begins at slot 0, so that a causal mask is all it takes for padding never to be seen.
Its cost grows with the square of a grid's width: where texts are long, each grid holds texts of similar length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 96  # tokens: below, attention is so small a part that one grid is best
NEAR = 0.7  # a text shorter than this share of a wide grid begins another one


@dataclass(frozen=True)
class Grid:
    """rows x width slots, and the places (n,) of the tokens that have one, row by row."""

    rows: int
    width: int
    places: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> "Grid":
        """A row for each text of these lengths (rows,), on the CPU."""
        rows, width = len(lengths), int(lengths.max())
        return cls(rows, width, _steps(lengths) + (torch.arange(rows) * width).repeat_interleave(lengths))

    def to(self, device: torch.device | None) -> "Grid":
        return Grid(self.rows, self.width, self.places.to(device, non_blocking=True))

    @property
    def full(self) -> bool:
        """All texts are of one length: the grid is the same numbers in the same order."""
        return len(self.places) == self.rows * self.width

    def fill(self, tokens: Tensor) -> Tensor:
        """(n,...) -> (rows,width,...), 0 where no token is."""
        shape = (self.rows, self.width, *tokens.shape[1:])
        if self.full:
            return tokens.view(shape)
        empty = tokens.new_zeros(self.rows * self.width, *tokens.shape[1:])
        return empty.index_copy(0, self.places, tokens).view(shape)

    def read(self, grid: Tensor) -> Tensor:
        """(rows,width,...) -> (n,...)"""
        tokens = grid.flatten(0, 1)
        return tokens if self.full else tokens.index_select(0, self.places)


@dataclass(frozen=True)
class Packing:
    """Where N tokens of several texts are.

    positions (N,) of each within its text; ends (texts,) where each text's last token is among the N; grids in which
    the texts stand for attention. Of several grids `order` (N,) says which of the N come one after another in them, and
    `back` (N,) the reverse.
    """

    positions: Tensor
    ends: Tensor
    grids: tuple[Grid, ...]
    order: Tensor | None = None
    back: Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> "Packing":
        """Texts of these lengths, each at least 1. Made on the CPU: no device is asked for anything."""
        sizes = torch.tensor(lengths)
        ends, positions, groups = sizes.cumsum(0) - 1, _steps(sizes), alike(lengths)
        grids = tuple(Grid.of(sizes[rows]).to(device) for rows in groups)
        if len(groups) == 1:
            return cls(positions.to(device, non_blocking=True), ends.to(device, non_blocking=True), grids)
        rows = torch.cat(groups)
        starts = (ends + 1 - sizes)[rows]
        order = starts.repeat_interleave(sizes[rows]) + _steps(sizes[rows])
        positions, ends, order, back = (
            x.to(device, non_blocking=True) for x in (positions, ends, order, order.argsort())
        )
        return cls(positions, ends, grids, order, back)

    def by_rows(self, function: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
        """function of grids (rows,width,...) -> (rows,width,...), for every grid: of (N,...) each, to (N,...)."""
        if self.order is None or self.back is None:
            (grid,) = self.grids
            return grid.read(function(*(grid.fill(x) for x in tokens)))
        sizes = [len(grid.places) for grid in self.grids]
        parts = zip(*(torch.split(x.index_select(0, self.order), sizes) for x in tokens), strict=True)
        done = [grid.read(function(*map(grid.fill, part))) for grid, part in zip(self.grids, parts, strict=True)]
        return torch.cat(done).index_select(0, self.back)


def alike(lengths: Sequence[int]) -> list[Tensor]:
    """Rows (n,) whose texts go into one grid: all of them, or from the longest on those of similar length."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        width = lengths[groups[-1][0]] if groups else 0
        if not groups or (width > WIDE and lengths[row] < NEAR * width):
            groups.append([])
        groups[-1].append(row)
    return [torch.tensor(group) for group in groups] if len(groups) > 1 else [torch.arange(len(lengths))]


def _steps(lengths: Tensor) -> Tensor:
    """0, 1, ... of each text, one after another: (sum of lengths,)."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - before.repeat_interleave(lengths)
