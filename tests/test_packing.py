"""Texts end to end: positions, places and ends by hand; the grid and back; a rollout's tokens by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.experience import Tokens
from minirlhf.packing import Packing
from tests.helpers import padded, random_rollout


def test_by_hand():
    p = Packing.of([2, 3, 1])
    assert (p.rows, p.width, p.full) == (3, 3, False)
    assert p.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert p.places.tolist() == [0, 1, 3, 4, 5, 6]
    assert p.ends.tolist() == [1, 4, 5]
    grid = p.grid(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert grid.tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert Packing.of([2, 2]).full


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_the_grid_and_back_is_the_same(lengths):
    p, x = Packing.of(lengths), torch.arange(1.0, 2 * sum(lengths) + 1).view(-1, 2)
    grid = p.grid(x)
    assert grid.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(p.flat(grid), x)
    for row, n in enumerate(lengths):
        assert (grid[row, n:] == 0).all()
        assert (grid[row, :n] != 0).all()


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 0), (0, 2), (5, 5)])
def test_the_tokens_of_a_rollout_by_hand(left, right):
    rollout = padded(random_rollout(), left, right)
    tokens = Tokens.of(rollout)
    texts = list(zip(rollout.prompt_id_lists, rollout.completion_id_lists, strict=True))
    assert rollout.sizes == tuple((len(p), len(c)) for p, c in texts)
    assert tokens.ids.tolist() == [i for p, c in texts for i in (*p, *c)]
    assert tokens.response_ids.tolist() == [i for _, c in texts for i in c]
    at, before = 0, []
    for prompt, completion in texts:
        before += range(at + len(prompt) - 1, at + len(prompt) + len(completion) - 1)
        at += len(prompt) + len(completion)
    assert tokens.before.tolist() == before
    part = rollout.rows(torch.tensor([3, 0]))
    assert part.sizes == (rollout.sizes[3], rollout.sizes[0])
