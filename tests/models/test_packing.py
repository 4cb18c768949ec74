"""Texts end to end: positions, slots and ends by hand; into the grids and back; a rollout's tokens by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.models import packing
from minirlhf.models.packing import Packing
from minirlhf.models.rollout import Tokens
from tests.helpers import padded, random_rollout


def test_by_hand():
    p = Packing.of([2, 3, 1])
    (grid,) = p.grids
    assert (grid.rows, grid.width, grid.full, p.order) == (3, 3, False, None)
    assert p.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert grid.slots.tolist() == [0, 1, 3, 4, 5, 6]
    assert p.ends.tolist() == [1, 4, 5]
    filled = grid.fill(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert filled.tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert Packing.of([2, 2]).grids[0].full


def test_texts_of_similar_length_share_a_grid_where_they_are_long_by_hand(monkeypatch):
    """Longest first; a text of less than 0.7 of a grid wider than 4 begins another one; from 4 on all stay together."""
    monkeypatch.setattr(packing, "WIDE", 4)
    p = Packing.of([3, 10, 7, 6, 2, 4])
    assert [(g.rows, g.width) for g in p.grids] == [(2, 10), (1, 6), (3, 4)]  # 10 7 | 6 | 4 3 2
    starts = {3: 0, 10: 3, 7: 13, 6: 20, 2: 26, 4: 28}
    assert p.order.tolist() == [i for n in (10, 7, 6, 4, 3, 2) for i in range(starts[n], starts[n] + n)]
    assert p.order[p.back].tolist() == list(range(32))
    assert len(Packing.of([4, 1]).grids) == 1
    assert len(Packing.of([10, 7]).grids) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 9))
def test_a_function_of_rows_sees_each_text_at_its_beginning_and_comes_back_in_order(lengths, wide):
    """The function is a running sum along a row, which junk in front or another text's tokens would change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WIDE", wide)
        p, x = Packing.of(lengths), torch.arange(1.0, 2 * sum(lengths) + 1).view(-1, 2)
        widths = []

        def sums(one, two):
            assert torch.equal(one, two)
            widths.append(one.shape[1])
            return one.cumsum(1)

        found = p.by_rows(sums, x, x)
    assert torch.equal(found, torch.cat([part.cumsum(0) for part in x.split(lengths)]))
    assert sorted(widths, reverse=True) == widths
    assert widths[0] == max(lengths)


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
