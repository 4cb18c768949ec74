"""The decoder: causal, blind to padding, the same with a cache as without, and grouped-query attention by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from minirlhf.models.attention import KVCache, rotary, rotate
from minirlhf.models.attention import attention as attend_causally
from minirlhf.models.packing import Packing
from minirlhf.models.transformer import plain
from tests.helpers import CONFIG, seeded, small_trunk

pytestmark = pytest.mark.usefixtures("double")


def ids(rows=3, length=9, seed=0):
    return torch.randint(3, 13, (rows, length), generator=seeded(seed))


def test_a_token_never_sees_what_comes_after_it():
    trunk, x = small_trunk(), ids()
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 10 + 3
    assert not torch.equal(x, changed)
    before, after = trunk(x), trunk(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("pad", [1, 4, 16])
def test_left_padding_changes_nothing(pad):
    trunk, x = small_trunk(), ids()
    junk = torch.full((3, pad), 7)
    mask = torch.cat([torch.zeros(3, pad, dtype=torch.bool), torch.ones_like(x, dtype=torch.bool)], dim=1)
    assert (trunk(torch.cat([junk, x], dim=1), mask)[:, pad:] - trunk(x)).abs().max() < 1e-10


@pytest.mark.parametrize("cuts", [[1] * 9, [4, 1, 1, 3], [9]])
def test_cached_decoding_equals_the_full_forward(cuts):
    trunk, x = small_trunk(), ids()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[0, :3] = False
    cache, start, pieces = KVCache(trunk.config, 3, 9, trunk.embed_tokens.weight), 0, []
    for cut in cuts:
        pieces.append(trunk(x[:, start : start + cut], mask[:, start : start + cut], cache))
        start += cut
    difference = (torch.cat(pieces, dim=1) - trunk(x, mask))[mask]
    assert difference.abs().max() < 1e-10


def test_no_mask_means_that_every_slot_is_real():
    trunk, x = small_trunk(), ids()
    assert (trunk(x) - trunk(x, torch.ones_like(x, dtype=torch.bool))).abs().max() < 1e-10
    cache = KVCache(trunk.config, 3, 9, trunk.embed_tokens.weight)
    pieces = torch.cat([trunk(x[:, :5], cache=cache), trunk(x[:, 5:], cache=cache)], dim=1)
    assert (pieces - trunk(x)).abs().max() < 1e-10


def test_a_row_of_padding_alone_gives_finite_numbers():
    trunk, x = small_trunk(), ids()
    assert trunk(x, torch.zeros_like(x, dtype=torch.bool)).isfinite().all()


def test_rotary_angles_are_computed_on_the_cpu_for_mps(monkeypatch):
    """No float64 there. A stand-in says that it is on MPS, and what is moved back to it stays on the CPU."""
    positions, mps, moved = torch.tensor([[0, 3, 70]]), torch.device("mps"), []
    to = torch.Tensor.to

    def stays(tensor, *where):
        if where != (mps,):
            return to(tensor, *where)
        moved.append(tensor.dtype)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", stays)
    found = rotary(SimpleNamespace(device=mps, cpu=lambda: positions), CONFIG, torch.float32)
    assert moved == [torch.float32] * 2
    assert all(map(torch.equal, found, rotary(positions, CONFIG, torch.float32)))


def test_rotary_scores_depend_on_distance_alone():
    q, k = torch.randn(8, generator=seeded(1)), torch.randn(8, generator=seeded(2))

    def score(i, j):
        cos, sin = rotary(torch.tensor([[i, j]]), replace(CONFIG, head_dim=8), torch.float64)
        both = rotate(torch.stack([q, k]).view(1, 2, 1, 8), cos, sin)
        return (both[0, 0, 0] * both[0, 1, 0]).sum()

    assert score(3, 1) == pytest.approx(score(12, 10).item(), abs=1e-12)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    assert score(0, 0) == pytest.approx((q * k).sum().item())


def test_grouped_query_attention_equals_attention_with_repeated_heads():
    trunk = small_trunk()
    attention, x = trunk.layers[0].self_attn, torch.randn(2, 5, 16, generator=seeded(3))
    cos, sin = rotary(torch.arange(5).expand(2, 5), trunk.config, torch.float64)
    q = rotate((x @ attention.q_proj.weight.T).view(2, 5, 4, 4), cos, sin).transpose(1, 2)
    k = rotate((x @ attention.k_proj.weight.T).view(2, 5, 2, 4), cos, sin).transpose(1, 2)
    v = (x @ attention.v_proj.weight.T).view(2, 5, 2, 4).transpose(1, 2)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = (q @ k.transpose(2, 3)) / 2.0 + torch.full((5, 5), float("-inf")).triu(1)
    expected = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(2, 5, 16) @ attention.o_proj.weight.T

    def attend(q, k, v):
        return attend_causally(*(x.transpose(1, 2) for x in (q, k, v)), None).flatten(2)

    assert (attention(x, cos, sin, attend, plain) - expected).abs().max() < 1e-10


def test_float32_smoke():
    torch.set_default_dtype(torch.float32)
    trunk, x = small_trunk(), ids()
    cache = KVCache(trunk.config, 3, 9, trunk.embed_tokens.weight)
    pieces = torch.cat([trunk(x[:, i : i + 1], cache=cache) for i in range(9)], dim=1)
    full = trunk(x)
    assert ((pieces - full).abs() <= 1e-5 * full.abs().clamp(min=1)).all()


@pytest.mark.parametrize("lengths", [(5, 1, 4), (3, 3), (7,), (1, 1, 9)])
def test_packed_texts_see_themselves_only_and_count_from_their_own_beginning(double, lengths):
    """Hidden states and gradients of texts end to end are those of each alone."""
    model = small_trunk()
    texts = [torch.randint(3, 13, (n,), generator=seeded(n)) for n in lengths]
    together = model.packed(torch.cat(texts), Packing.of(lengths))
    apart = torch.cat([model(text.unsqueeze(0))[0] for text in texts])
    torch.testing.assert_close(together, apart)
    weights = torch.randn(apart.shape, generator=seeded())
    for one, two in zip(
        torch.autograd.grad((together * weights).sum(), list(model.parameters())),
        torch.autograd.grad((apart * weights).sum(), list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_a_cache_goes_on_with_some_of_its_rows():
    trunk, x = small_trunk(), ids()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[2, :2] = False
    cache = KVCache(trunk.config, 3, 9, trunk.embed_tokens.weight)
    trunk(x[:, :6], mask[:, :6], cache)
    cache.keep(torch.tensor([2, 0]))
    rest = trunk(x[[2, 0], 6:], cache=cache)
    assert (rest - trunk(x, mask)[[2, 0], 6:]).abs().max() < 1e-10
