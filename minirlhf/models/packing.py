"""Texts of different lengths without padding: the tokens of a batch end to end, and their places in grids of rows.

Everything that is done token by token (embeddings, projections, norms, heads) runs on the N real tokens of a batch.
Only attention needs rows, one text each. In such a grid a text begins at slot 0, so that a causal mask is enough to
hide the padding. The cost of attention grows with the square of a grid's width: where texts are long, they are spread
over several grids with texts of similar length in each.

Not here: the tokens of a rollout (models/rollout.py) and attention itself (models/transformer.py). All index tensors
are made on the CPU from lengths that are known there, and copied without waiting, so that no device is synchronised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = 96  # tokens: in narrower grids attention is so small a part of the work that one grid is best
NEAR = 0.7  # a text shorter than this share of a wide grid's width begins another grid


@dataclass(frozen=True)
class Grid:
    """Grid of rows x width slots, one text a row from slot 0 on; slots (n,) numbers the filled ones, row by row."""

    rows: int
    width: int
    slots: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> "Grid":
        """Grid with a row for each text of these lengths (rows,), on the CPU."""
        rows, width = len(lengths), int(lengths.max())
        # Slot of token t of row i in the flattened grid: i * width + t.
        return cls(rows, width, _positions(lengths) + (torch.arange(rows) * width).repeat_interleave(lengths))

    def to(self, device: torch.device | None) -> "Grid":
        return Grid(self.rows, self.width, self.slots.to(device, non_blocking=True))

    @property
    def full(self) -> bool:
        """True if all texts are of one length: the grid is then the tokens themselves, and nothing has to be copied."""
        return len(self.slots) == self.rows * self.width

    def fill(self, tokens: Tensor) -> Tensor:
        """Put tokens (n,...) into their slots: (rows,width,...), 0 in the others."""
        shape = (self.rows, self.width, *tokens.shape[1:])
        if self.full:
            return tokens.view(shape)
        # Zeros, not whatever is in memory: a NaN in an empty slot would have weight 0 in attention, but 0 * NaN is NaN.
        empty = tokens.new_zeros(self.rows * self.width, *tokens.shape[1:])
        return empty.index_copy(0, self.slots, tokens).view(shape)

    def read(self, grid: Tensor) -> Tensor:
        """Take the tokens out of their slots: (rows,width,...) -> (n,...)."""
        tokens = grid.flatten(0, 1)
        return tokens if self.full else tokens.index_select(0, self.slots)


@dataclass(frozen=True)
class Packing:
    """Index of N tokens of several texts, end to end in the order of the texts.

    positions (N,) of each token within its text; ends (texts,) index of each text's last token among the N; grids, the
    rows for attention. With several grids, order (N,) lists the tokens as they stand in the grids, one grid after
    another, and back (N,) is the inverse permutation; with one grid both are None, since the order is the same.
    """

    positions: Tensor
    ends: Tensor
    grids: tuple[Grid, ...]
    order: Tensor | None = None
    back: Tensor | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(grid.width for grid in self.grids)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> "Packing":
        """Packing of texts of these lengths, each at least 1."""
        sizes = torch.tensor(lengths)
        ends, positions, groups = sizes.cumsum(0) - 1, _positions(sizes), similar_lengths(lengths)
        grids = tuple(Grid.of(sizes[rows]).to(device) for rows in groups)
        if len(groups) == 1:
            return cls(positions.to(device, non_blocking=True), ends.to(device, non_blocking=True), grids)
        rows = torch.cat(groups)  # texts in the order of the grids
        # A text keeps its tokens together: token t of text i is number start_i + t, wherever its grid stands.
        starts = (ends + 1 - sizes)[rows]
        order = starts.repeat_interleave(sizes[rows]) + _positions(sizes[rows])
        # The argsort of a permutation is its inverse: x[order][back] = x.
        positions, ends, order, back = (
            x.to(device, non_blocking=True) for x in (positions, ends, order, order.argsort())
        )
        return cls(positions, ends, grids, order, back)

    def by_rows(self, function: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
        """Apply a function of rows to tokens: each (N,...) is put into the grids, the result comes back as (N,...).

        function: one (rows,width,...) for each of `tokens` -> (rows,width,...). It is called once for each grid.
        """
        if self.order is None or self.back is None:
            (grid,) = self.grids
            return grid.read(function(*(grid.fill(x) for x in tokens)))
        # Three steps: tokens into the order of the grids, each grid its share of them, and the results back again.
        sizes = [len(grid.slots) for grid in self.grids]
        parts = zip(*(torch.split(x.index_select(0, self.order), sizes) for x in tokens), strict=True)
        done = [grid.read(function(*map(grid.fill, part))) for grid, part in zip(self.grids, parts, strict=True)]
        return torch.cat(done).index_select(0, self.back)


def similar_lengths(lengths: Sequence[int]) -> list[Tensor]:
    """Group texts into grids by length: a list of indices (n,) of texts.

    From the longest text on, a group takes texts until one is shorter than NEAR of its longest; groups of at most WIDE
    tokens take all the rest.
    """
    # Each grid costs a call of attention. Only wide grids are worth splitting, since their cost grows with width^2.
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        width = lengths[groups[-1][0]] if groups else 0
        if not groups or (width > WIDE and lengths[row] < NEAR * width):
            groups.append([])
        groups[-1].append(row)
    # A single group keeps the order of the texts, which saves the permutation there and back.
    return [torch.tensor(group) for group in groups] if len(groups) > 1 else [torch.arange(len(lengths))]


def _positions(lengths: Tensor) -> Tensor:
    """Positions 0, 1, ... within each text, one text after another: (sum of lengths,)."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - before.repeat_interleave(lengths)
