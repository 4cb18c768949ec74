"""Next-token training: every token predicted once, padding without effect, the schedule, and a loss that falls."""

import itertools
import math
from collections import Counter

import pytest
import torch

from minirlhf.config.schema import PretrainConfig
from minirlhf.errors import DivergedError
from minirlhf.models import head
from minirlhf.models.transformer import Transformer
from minirlhf.stages.pretrain import (
    FASTER,
    PretrainState,
    batches,
    heldout_loss,
    rate,
    token_losses,
    train,
    windows,
)
from tests.helpers import BOS, EOS, Letters, flat, seeded, small_trunk

TEXTS = ["", "a", "abc", "abcd", "abcdefg", "jihgfedcba", "abcdefghijabcdefghijabc"]


def model(seed=0) -> Transformer:
    """Near uniform: a guess costs log 13."""
    return small_trunk(seed, scale=0.02)


def settings(**changed) -> PretrainConfig:
    return PretrainConfig(**{"steps": 6, "batch_size": 4, "sequence_length": 8, "warmup": 2, "lr": 1e-2} | changed)


# ---- windows and batches -----------------------------------------------------------------------------------


def test_a_long_document_is_cut_and_its_pieces_overlap_by_one_token_by_hand():
    assert windows(["abcdef", "b"], Letters(), 4) == [
        [BOS, 3, 4, 5],
        [5, 6, 7, 8],  # 5 was predicted above; here it only stands before 6
        [8, EOS],
        [BOS, 4, EOS],
    ]


@pytest.mark.parametrize("length", [2, 3, 4, 5, 9, 64])
def test_every_token_but_bos_is_predicted_exactly_once(length):
    for text in TEXTS:
        cut = windows([text], Letters(), length)
        assert all(2 <= len(window) <= length for window in cut)
        assert cut[0][0] == BOS
        predicted = [token for window in cut for token in window[1:]]
        assert predicted == [*Letters().encode(text), EOS]
        for before, after in itertools.pairwise(cut):
            assert after[0] == before[-1]  # and its context is the token before it
    together = windows(TEXTS, Letters(), length)
    assert together == [window for text in TEXTS for window in windows([text], Letters(), length)]


def test_batches_cover_every_window_once_an_epoch_in_a_fresh_order_and_are_deterministic():
    g = seeded()
    data = [[BOS, *[3 + i % 10] * int(torch.randint(0, 9, (), generator=g)), EOS] for i in range(150)]
    data = [[*row, 3 + i // 10, 3 + i % 10] for i, row in enumerate(data)]  # distinct
    size, each = 4, math.ceil(150 / 4)
    stream = batches(data, size, 5)
    epochs = [list(itertools.islice(stream, each)) for _ in range(3)]
    for epoch in epochs:
        seen = [tuple(row) for batch in epoch for row in batch]
        assert Counter(seen) == Counter(tuple(row) for row in data)
        assert [len(batch) for batch in epoch] == [size] * (each - 1) + [150 - size * (each - 1)]
    as_lists = [[list(batch) for batch in epoch] for epoch in epochs]
    assert as_lists[0] != as_lists[1] != as_lists[2]
    together = [{str(sorted(batch)) for batch in epoch} for epoch in as_lists]
    assert len(together[0] & together[1]) < each / 2  # other windows meet, it is not only another order of batches
    again = batches(data, size, 5)
    assert [next(again) for _ in range(2 * each)] == as_lists[0] + as_lists[1]
    assert list(itertools.islice(batches(data, size, 6), each)) != as_lists[0]


def test_a_batch_is_drawn_from_all_lengths():
    """Half of the windows are short: 4 drawn at random are alike with probability 1/8, 4 neighbours always."""
    data = [[BOS, 3 + i % 10, EOS][: 2 + i % 2] for i in range(400)]
    first = list(itertools.islice(batches(data, 4, 0), 100))
    alike = sum(len({len(row) for row in batch}) == 1 for batch in first)
    assert alike < 30  # 12.5 are expected, with a standard deviation of 3.3


# ---- the loss ----------------------------------------------------------------------------------------------


def cross_entropy_by_hand(trunk: Transformer, rows) -> tuple[float, int]:
    """-log p of every token after the first, each from its own forward pass over what stands before it."""
    nats, count = 0.0, 0
    for row in rows:
        for t in range(1, len(row)):
            with torch.no_grad():
                logits = trunk.embed_tokens.weight @ trunk(torch.tensor([row[:t]]))[0, -1]
            nats += math.log(sum(math.exp(x) for x in logits.tolist())) - logits[row[t]].item()
            count += 1
    return nats, count


@pytest.mark.usefixtures("double")
def test_the_loss_is_the_cross_entropy_by_hand():
    trunk, rows = small_trunk(), windows(TEXTS, Letters(), 6)
    nats, count = cross_entropy_by_hand(trunk, rows)
    total, tokens = token_losses(trunk, rows)
    assert tokens == count == sum(len(text) + 1 for text in TEXTS)
    assert total.item() == pytest.approx(nats, abs=1e-10)
    for size in (1, 3, 100):
        assert heldout_loss(trunk, rows, size) == pytest.approx(nats / count, abs=1e-10)


def test_the_loss_in_float32_smoke():
    trunk, rows = small_trunk(), windows(TEXTS, Letters(), 6)
    nats, _ = cross_entropy_by_hand(trunk, rows)
    assert token_losses(trunk, rows)[0].item() == pytest.approx(nats, rel=1e-4)


@pytest.mark.usefixtures("double")
def test_the_company_of_a_row_changes_neither_its_loss_nor_its_gradient():
    rows, trunk = windows(TEXTS, Letters(), 6), small_trunk()
    total, count = token_losses(trunk, rows)
    apart = [token_losses(trunk, [row]) for row in rows]
    assert count == sum(tokens for _, tokens in apart)
    alone = sum(nats for nats, _ in apart)
    assert total.item() == pytest.approx(alone.item(), abs=1e-10)
    for one, two in zip(*(torch.autograd.grad(x, list(trunk.parameters())) for x in (total, alone)), strict=True):
        torch.testing.assert_close(one, two)


# ---- training ----------------------------------------------------------------------------------------------


def trained(state, config, data):
    return [metrics for _, metrics in train(state, data, config)]


def test_a_resumed_state_goes_on_with_the_same_data_and_ends_with_the_same_weights():
    data, config = windows(TEXTS, Letters(), 8), settings()
    whole = PretrainState.start(model(), config)
    expected = trained(whole, config, data)
    state = PretrainState.start(model(), config)
    loop = train(state, data, config)
    first = [next(loop)[1] for _ in range(2)]
    loop.close()
    assert state.step == 2
    both = first + trained(state, config, data)
    for got, want in zip(both, expected, strict=True):
        assert {k: v for k, v in got.items() if k != "tokens_per_s"} == {
            k: v for k, v in want.items() if k != "tokens_per_s"
        }
    assert torch.equal(flat(state.model), flat(whole.model))
    assert (state.step, state.tokens) == (whole.step, whole.tokens) == (6, expected[-1]["tokens"])


def test_the_data_seed_decides_the_order():
    data = windows(TEXTS, Letters(), 8)
    one, same, other = (
        trained(PretrainState.start(model(), settings(seed=seed)), settings(seed=seed), data) for seed in (0, 0, 1)
    )
    assert [m["loss"] for m in one] == [m["loss"] for m in same]
    assert [m["loss"] for m in one] != [m["loss"] for m in other]


def test_the_schedule_by_hand():
    """Warm-up 4 of 12, down to a tenth: a step before the end of warm-up, at it, halfway, and at the end."""
    config = settings(steps=12, warmup=4, final_lr=0.1)
    assert [rate(step, config) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rate(8, config) == pytest.approx(0.55)  # the middle of 1 and 0.1
    assert rate(6, config) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter: cos 45 degrees
    assert rate(12, config) == pytest.approx(0.1)
    assert rate(99, config) == pytest.approx(0.1)
    assert rate(0, settings(warmup=0)) == 1.0
    few = settings(steps=3, warmup=5)  # at most half of the steps warm up: two of three
    assert [rate(step, few) for step in range(3)] == pytest.approx([0.5, 1.0, 1.0])
    assert rate(0, settings(steps=1, warmup=5)) == pytest.approx(1.0)


def test_the_logged_rate_is_the_one_that_the_step_was_taken_with():
    config = settings(steps=3, warmup=2, lr=0.01, final_lr=0.0)
    state = PretrainState.start(model(), config)
    assert [m["lr"] for m in trained(state, config, windows(TEXTS, Letters(), 8))] == pytest.approx([0.005, 0.01, 0.01])


def test_weight_decay_is_on_matrices_only():
    state = PretrainState.start(model(), settings(weight_decay=0.3))
    groups = state.optimizer.param_groups
    decay = {id(p): group["weight_decay"] * group["lr"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups) == len(list(state.model.parameters()))
    for name, parameter in state.model.named_parameters():  # a step takes lr 0.3 of a matrix, and nothing of a norm
        assert decay[id(parameter)] == pytest.approx(0.0 if name.endswith("norm.weight") else 0.3 * groups[-1]["lr"])


def test_the_first_step_of_embeddings_and_norms_is_larger_by_their_rate():
    """Adam's first step is lr times the sign of the gradient, so that lr alone tells two parameters apart."""
    config = settings(steps=1, warmup=0, lr=1e-3, weight_decay=0.0)
    state = PretrainState.start(model(), config)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    trained(state, config, windows(TEXTS, Letters(), 8))
    for name, parameter in state.model.named_parameters():
        step = (parameter - before[name]).abs().max().item()
        faster = name == "embed_tokens.weight" or name.endswith("norm.weight")
        expected = 1e-3 * (FASTER if faster else 1)
        assert step == pytest.approx(expected, rel=1e-2), name  # Adam's eps takes some of it where a gradient is small


def test_the_loss_on_a_constant_text_falls_from_that_of_a_guess_to_almost_nothing():
    config = settings(steps=60, batch_size=8, lr=2e-2)
    data = windows(["abcab"] * 8, Letters(), 8)
    trunk = model()  # small first weights: not quite the uniform distribution, whose loss is log 13
    assert heldout_loss(trunk, data, 8) == pytest.approx(math.log(13), abs=0.05)
    metrics = trained(PretrainState.start(trunk, config), config, data)
    assert metrics[0]["loss"] == pytest.approx(math.log(13), abs=0.05)
    assert metrics[-1]["loss"] < 0.1
    assert heldout_loss(trunk, data, 8) < 0.1
    assert metrics[-1]["tokens"] == 60 * 8 * 6  # five letters and EOS


def test_a_loss_that_is_not_finite_stops_before_the_step():
    trunk = model()
    with torch.no_grad():
        trunk.norm.weight[0] = float("nan")
    before, state = flat(trunk), PretrainState.start(trunk, settings())
    with pytest.raises(DivergedError, match=r"pretraining loss = nan.*step 1"):
        trained(state, settings(), windows(TEXTS, Letters(), 8))
    assert torch.equal(flat(trunk).nan_to_num(7.0), before.nan_to_num(7.0))
    assert state.step == 0


def test_the_logits_of_a_large_vocabulary_come_in_chunks_with_the_same_loss_and_gradient(double, monkeypatch):
    found = []
    for most in (1 << 24, 3 * 13):  # all tokens at once; three at a time
        monkeypatch.setattr(head, "CHUNK_LOGITS", most)
        model = small_trunk()
        loss, count = token_losses(model, [[1, 5, 7, 9, 2], [1, 3, 3, 4]], [2, 1])
        loss.backward()
        found.append((loss.detach(), count, model.embed_tokens.weight.grad))
    (loss, count, gradient), (again, same, other) = found
    assert count == same == 6
    torch.testing.assert_close(loss, again, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)
