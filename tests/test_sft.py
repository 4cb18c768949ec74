"""SFT: what is learned from a demonstration, packing that changes nothing, training that can be gone on with."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.config import SFTConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.sft import Example, SFTState, completion_losses, encode, fill_rows, heldout_loss, pack, steps_of, train
from minirlhf.text.comparisons import Demonstration
from tests.helpers import BOS, EOS, PAD, Letters, flat, seeded, small_trunk

CPU = torch.device("cpu")


def test_an_example_is_bos_prompt_completion_eos_and_knows_where_the_completion_begins():
    shown, notes = encode([Demonstration("ab", "cd"), Demonstration("", "a")], Letters(), 6)
    assert shown == [Example([BOS, 3, 4, 5, 6, EOS], 3), Example([BOS, 3, EOS], 1)]
    assert notes == []


def test_what_does_not_fit_is_left_out_and_said():
    rows = [Demonstration("ab", "c"), Demonstration("ab", "c" * 9, "f:7")]
    shown, notes = encode(rows, Letters(), 6)
    assert len(shown) == 1
    assert notes == ["f:7: 13 tokens, 6 fit: the row is left out"]
    with pytest.raises(InputError, match="no demonstration fits: f:7"):
        encode(rows[1:], Letters(), 6)


def of(*lengths):
    return [Example([BOS, *[3 + i] * (n - 2), EOS], 1) for i, n in enumerate(lengths)]


def test_first_fit_decreasing_by_hand():
    """Lengths 3 6 4 5 2 in rows of 10: 6 + 4, then 5 + 3 + 2."""
    rows = fill_rows(of(3, 6, 4, 5, 2), 10)
    assert [[len(e.ids) for e in row] for row in rows] == [[6, 4], [5, 3, 2]]


@given(st.lists(st.integers(2, 12), min_size=1, max_size=40))
def test_every_text_is_in_one_row_whole(lengths):
    rows = fill_rows(of(*lengths), 12)
    assert all(sum(len(e.ids) for e in row) <= 12 for row in rows)
    assert sorted(len(e.ids) for row in rows for e in row) == sorted(lengths)


def test_a_packed_row_by_hand():
    one, two = Example([BOS, 3, 4, EOS], 2), Example([BOS, 5, EOS], 1)
    packed = pack([[one, two], [two]], PAD)
    assert packed.ids.tolist() == [[BOS, 3, 4, EOS, BOS, 5, EOS], [BOS, 5, EOS, PAD, PAD, PAD, PAD]]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]]
    assert packed.learned.int().tolist() == [[0, 0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0]]


def ragged(count=7, seed=0):
    g = seeded(seed)
    out = []
    for _ in range(count):
        size = int(torch.randint(1, 8, (), generator=g))
        start = 1 + int(torch.randint(0, size, (), generator=g))
        out.append(Example([BOS, *torch.randint(3, 13, (size,), generator=g).tolist(), EOS], start))
    return out


def alone(model, example):
    """-log p of each token of the completion, read from a text on its own."""
    logits = model(torch.tensor([example.ids]))[0] @ model.embed_tokens.weight.T
    logp = F.log_softmax(logits, dim=-1)
    return [-logp[i - 1, example.ids[i]] for i in range(example.start, len(example.ids))]


def test_packing_changes_neither_the_loss_nor_its_gradient(double):
    model, examples = small_trunk(), ragged()
    nats, count = completion_losses(model, pack(fill_rows(examples, 12), PAD))
    apart = [loss for example in examples for loss in alone(model, example)]
    assert int(count) == len(apart) == sum(len(e.ids) - e.start for e in examples)
    assert nats.item() == pytest.approx(sum(apart).item(), abs=1e-10)
    packed = torch.autograd.grad(nats, list(model.parameters()))
    single = torch.autograd.grad(sum(apart), list(model.parameters()))
    for one, two in zip(packed, single, strict=True):
        torch.testing.assert_close(one, two)


def test_what_stands_in_the_padding_changes_nothing(double):
    model = small_trunk()
    packed = pack([ragged()[:1], ragged()[1:3]], PAD)
    junk = torch.where(packed.segments == 0, 9, packed.ids)
    assert (packed.segments == 0).any()
    before, _ = completion_losses(model, packed)
    after, _ = completion_losses(model, type(packed)(junk, packed.segments, packed.learned))
    assert before.item() == after.item()


def config(**options):
    return SFTConfig(**{"epochs": 3, "batch_size": 4, "lr": 3e-3, "warmup": 2, **options})


def lessons(count=60):
    """After a comes b and the end, after c comes d and the end."""
    return encode([Demonstration("ac"[i % 2], "bd"[i % 2]) for i in range(count)], Letters(), 12)[0]


def test_a_rule_is_learned():
    model = small_trunk(scale=0.1)
    rows, settings = fill_rows(lessons(), 12), config(epochs=12, lr=1e-2)
    before = heldout_loss(model, rows, Letters(), 4, CPU)
    state = SFTState.start(model, settings)
    steps = list(train(state, rows, Letters(), settings, CPU))
    assert [step for step, _ in steps] == list(range(1, steps_of(rows, settings) + 1))
    assert before > 1
    assert heldout_loss(model, rows, Letters(), 4, CPU) < 0.1
    assert state.tokens == 12 * 60 * 2


def test_a_stop_in_between_changes_nothing():
    rows, settings = fill_rows(lessons(), 12), config()
    whole = SFTState.start(small_trunk(scale=0.1), settings)
    list(train(whole, rows, Letters(), settings, CPU))
    parts = SFTState.start(small_trunk(scale=0.1), settings)
    first = train(parts, rows, Letters(), settings, CPU)
    for _ in range(5):
        next(first)
    assert parts.step == 5
    list(train(parts, rows, Letters(), settings, CPU))
    assert torch.equal(flat(whole.model), flat(parts.model))


def test_a_loss_that_is_not_finite_is_named():
    model = small_trunk()
    torch.nn.init.constant_(model.norm.weight, math.nan)
    state = SFTState.start(model, config())
    with pytest.raises(DivergedError, match=r"SFT loss = nan.*step 1.*sft\.lr"):
        list(train(state, fill_rows(lessons(), 12), Letters(), config(), CPU))
