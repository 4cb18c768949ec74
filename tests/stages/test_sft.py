"""SFT: what is learned from a demonstration, training that can be gone on with."""

import math

import pytest
import torch
import torch.nn.functional as F

from minirlhf.config.schema import TARGETS, SFTConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.models.lora import Adapted, Adapter
from minirlhf.stages.pretrain import token_losses
from minirlhf.stages.sft import Example, SFTState, demonstration_loss, encode_demonstrations, sft_steps, train
from minirlhf.text.comparisons import Demonstration
from tests.helpers import BOS, EOS, Letters, flat, seeded, small_trunk


def test_an_example_is_bos_prompt_completion_eos_and_knows_where_the_completion_begins():
    shown, notes = encode_demonstrations([Demonstration("ab", "cd"), Demonstration("", "a")], Letters(), 6)
    assert shown == [Example([BOS, 3, 4, 5, 6, EOS], 3), Example([BOS, 3, EOS], 1)]
    assert notes == []


def test_what_does_not_fit_is_left_out_and_said():
    rows = [Demonstration("ab", "c"), Demonstration("ab", "c" * 9, "f:7")]
    shown, notes = encode_demonstrations(rows, Letters(), 6)
    assert len(shown) == 1
    (note,) = notes
    assert note.endswith("demonstrations are left out, f:7 (13 tokens): 6 tokens fit; raise model.max_positions")
    with pytest.raises(InputError, match="no demonstration fits: f:7"):
        encode_demonstrations(rows[1:], Letters(), 6)


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


def test_the_loss_is_that_of_the_completions_alone_and_so_is_its_gradient(double):
    model, examples = small_trunk(), ragged()
    nats, count = token_losses(model, [e.ids for e in examples], [e.start for e in examples])
    apart = [loss for example in examples for loss in alone(model, example)]
    assert count == len(apart) == sum(len(e.ids) - e.start for e in examples)
    assert nats.item() == pytest.approx(sum(apart).item(), abs=1e-10)
    together = torch.autograd.grad(nats, list(model.parameters()))
    single = torch.autograd.grad(sum(apart), list(model.parameters()))
    for one, two in zip(together, single, strict=True):
        torch.testing.assert_close(one, two)
    assert demonstration_loss(model, examples, 3) == pytest.approx(nats.item() / count)


def config(**options):
    return SFTConfig(**{"epochs": 3, "batch_size": 4, "lr": 3e-3, "warmup": 2, **options})


def lessons(count=60):
    """After a comes b and the end, after c comes d and the end."""
    return encode_demonstrations([Demonstration("ac"[i % 2], "bd"[i % 2]) for i in range(count)], Letters(), 12)[0]


def test_a_rule_is_learned():
    model = small_trunk(scale=0.1)
    rows, settings = lessons(), config(epochs=6, lr=1e-2)
    before = demonstration_loss(model, rows, 4)
    state = SFTState.start(model, settings)
    steps = list(train(state, rows, settings))
    assert [step for step, _ in steps] == list(range(1, sft_steps(rows, settings) + 1))
    assert before > 1
    assert demonstration_loss(model, rows, 4) < 0.1
    assert state.tokens == 6 * 60 * 2


def test_a_stop_in_between_changes_nothing():
    rows, settings = lessons(), config()
    whole = SFTState.start(small_trunk(scale=0.1), settings)
    list(train(whole, rows, settings))
    parts = SFTState.start(small_trunk(scale=0.1), settings)
    first = train(parts, rows, settings)
    for _ in range(5):
        next(first)
    assert parts.step == 5
    list(train(parts, rows, settings))
    assert torch.equal(flat(whole.model), flat(parts.model))


def test_adapters_with_dropout_learn_the_same_after_a_stop_and_something_else_than_without():
    rows, settings, ended = lessons(), config(), []
    for dropout, stop in ((0.0, 0), (0.3, 0), (0.3, 5)):
        trunk = small_trunk(scale=0.1).requires_grad_(False)
        adapter = Adapter(trunk.config, 2, 4.0, TARGETS).initialise(seeded())
        state = SFTState.start(Adapted(trunk, adapter), settings)
        first = train(state, rows, settings, dropout)
        for _ in range(stop):
            next(first)
        assert adapter.dropout is None
        list(train(state, rows, settings, dropout))
        ended.append(flat(adapter))
    assert torch.equal(ended[1], ended[2])
    assert not torch.allclose(ended[0], ended[1])


def test_a_loss_that_is_not_finite_is_named():
    model = small_trunk()
    torch.nn.init.constant_(model.norm.weight, math.nan)
    state = SFTState.start(model, config())
    with pytest.raises(DivergedError, match=r"SFT loss = nan.*step 1.*sft\.lr"):
        list(train(state, lessons(), config()))
