"""Bradley-Terry by hand, the way from text to ids, training on a rule that can be learned."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.config.schema import TARGETS, RewardModelConfig
from minirlhf.errors import DivergedError, InputError
from minirlhf.models.lora import Adapted, Adapter
from minirlhf.models.scorer import Scorer
from minirlhf.stages.reward_model import (
    Pair,
    RewardModelState,
    accuracy,
    bradley_terry,
    encode_pairs,
    margins,
    normalise,
    train,
    update_scorer,
)
from minirlhf.text.comparisons import Comparison, check_enough, hold_out
from minirlhf.text.tokenizer import text_ids
from tests.helpers import BOS, EOS, Letters, Recorder, flat, seeded, small_trunk


def terry(chosen, rejected, margin=0.0, probability=1.0, smoothing=0.0):
    values = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected, margin, probability))
    return bradley_terry(*values, smoothing).item()


def test_bradley_terry_by_hand():
    assert terry(2.0, 0.5) == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-12)
    assert terry(2.0, 0.5, margin=1.0) == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-12)
    both = 0.8 * math.log(1 + math.exp(-1.5)) + 0.2 * math.log(1 + math.exp(1.5))
    assert terry(2.0, 0.5, probability=0.8) == pytest.approx(both, abs=1e-12)
    assert terry(2.0, 0.5, smoothing=0.2) == pytest.approx(both, abs=1e-12)
    # 0.7 said and a tenth of the labels wrong: 0.7 x 0.9 + 0.3 x 0.1 = 0.66
    mixed = 0.66 * math.log(1 + math.exp(-1.5)) + 0.34 * math.log(1 + math.exp(1.5))
    assert terry(2.0, 0.5, probability=0.7, smoothing=0.1) == pytest.approx(mixed, abs=1e-12)


@given(st.floats(-1000, 1000), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.1]))
def test_it_is_finite_with_its_gradient_at_every_difference(d, probability, smoothing):
    chosen = torch.tensor([d], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(1), torch.zeros(1), torch.tensor([probability]), smoothing)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad.isfinite().all()
    assert loss >= 0


def test_a_thousand_apart():
    assert terry(1000.0, 0.0) == 0
    assert terry(-1000.0, 0.0) == 1000


def test_a_text_is_bos_prompt_completion_eos_encoded_apart():
    assert text_ids(Letters(), "ab", "c", True) == [BOS, 3, 4, 5, EOS]
    assert text_ids(Letters(), "ab", "c", False) == [BOS, 3, 4, 5]


def test_what_does_not_fit_is_left_out_and_said():
    rows = [Comparison("ab", "c", "d", 0.5, 0.9), Comparison("ab", "c" * 9, "d", where="f:7")]
    pairs, notes = encode_pairs(rows, Letters(), 6)
    assert pairs == [Pair([BOS, 3, 4, 5, EOS], [BOS, 3, 4, 6, EOS], 0.5, 0.9)]
    (note,) = notes
    assert note.endswith("comparisons are left out, f:7 (13 tokens): 6 tokens fit; raise model.max_positions")
    with pytest.raises(InputError, match="no comparison fits: f:7"):
        encode_pairs(rows[1:], Letters(), 6)


def test_whole_prompts_are_held_out():
    rows = [Comparison(f"p{i % 10}", "a", "b") for i in range(40)]
    learn, held = hold_out(rows, 0.2, seeded())
    assert len(held) == 8
    assert not {c.prompt for c in learn} & {c.prompt for c in held}
    assert len({c.prompt for c in held}) == 2
    one = [Comparison("p", str(i), "b") for i in range(10)]
    learn, held = hold_out(one, 0.2, seeded())
    assert (len(learn), len(held)) == (8, 2)
    with pytest.raises(InputError, match=r"one row cannot be learned from and held out: x\.jsonl"):
        check_enough(one[:1], "x.jsonl")


def pairs_of(count, seed, flip=0.0):
    """The side with more of token 3 (letter a) is the better one; a share of the labels is flipped."""
    g, found = seeded(seed), []
    while len(found) < count:
        one, two = ([BOS, *torch.randint(3, 6, (6,), generator=g).tolist(), EOS] for _ in range(2))
        if one.count(3) == two.count(3):
            continue
        better = one.count(3) > two.count(3)
        better = better != bool(torch.rand(1, generator=g) < flip)
        found.append(Pair(*((one, two) if better else (two, one)), 0.0, 1.0))
    return found


def trained(flip=0.0, **options):
    config = RewardModelConfig(epochs=4, batch_size=32, lr=3e-3, warmup=5, patience=50, **options)
    state = RewardModelState.start(Scorer(small_trunk(scale=0.1)).initialise(seeded(1)), config)
    return state, list(train(state, pairs_of(400, 1, flip), pairs_of(200, 2, flip), config))


def test_a_rule_is_learned_shuffled_labels_are_not_and_flipped_ones_teach_the_opposite():
    learned = accuracy(margins(trained()[0].model, pairs_of(300, 3)))
    chance = accuracy(margins(trained(flip=0.5)[0].model, pairs_of(300, 3)))
    against = accuracy(margins(trained(flip=1.0)[0].model, pairs_of(300, 3)))
    assert learned > 0.95
    assert 0.15 < chance < 0.85
    assert against < 0.05


class Two(torch.nn.Module):
    """A scorer whose two parameters are the scores of the chosen and of the rejected side."""

    def __init__(self, chosen, rejected):
        super().__init__()
        self.score = torch.nn.Linear(1, 1)
        self.said = torch.nn.Parameter(torch.tensor([chosen, rejected]))

    def forward(self, rows):
        return self.said


@pytest.mark.parametrize("centring", [0.0, 0.25])
def test_the_gradient_of_a_pair_by_hand(centring):
    """Scores 1 and 0.5: -log sigmoid(d) pulls each side by 1 - sigmoid(0.5), apart; centring x (1 + 0.5)^2 pushes both
    down by 2 x 1.5 x centring."""
    model = Two(1.0, 0.5)
    state = RewardModelState(model, Recorder([model.said]))
    config = RewardModelConfig(centring=centring, grad_clip=1e9)
    metrics = update_scorer(state, [Pair([1], [2], 0.0, 1.0)], config, 4)
    apart = 1 - 1 / (1 + math.exp(-0.5))
    down = 2 * 1.5 * centring
    assert state.optimizer.gradients[0].tolist() == pytest.approx([-apart + down, apart + down])
    assert metrics["loss"] == pytest.approx(math.log(1 + math.exp(-0.5)))  # what is logged is the loss without it


def test_the_best_weights_are_kept_and_patience_ends_it():
    state, steps = trained()
    held = {step: m["heldout_accuracy"] for step, m in steps if "heldout_accuracy" in m}
    assert state.best == max(held.values())
    assert held[state.best_step] == state.best
    assert accuracy(margins(state.model, pairs_of(200, 2))) == pytest.approx(state.best)
    config = RewardModelConfig(epochs=50, batch_size=32, lr=3e-3, warmup=5, patience=1)
    early = RewardModelState.start(Scorer(small_trunk(scale=0.1)).initialise(seeded(1)), config)
    ended = list(train(early, pairs_of(400, 1), pairs_of(50, 2), config))
    assert len(ended) < 50 * 13


def test_ties_leave_the_accuracies_and_decide_nothing():
    """Four steps of 16 pairs; with ties alone to look at, training goes to its end and keeps the last weights."""
    ties = [replace(pair, probability=0.5) for pair in pairs_of(64, 1)]
    config = RewardModelConfig(epochs=1, batch_size=16, lr=1e-2, warmup=0, patience=1)

    def run(pairs, heldout):
        state = RewardModelState.start(Scorer(small_trunk(scale=0.1)).initialise(seeded(1)), config)
        return state, list(train(state, pairs, heldout, config))

    state, steps = run(ties, ties)
    assert all(math.isnan(metrics["accuracy"]) for _, metrics in steps)
    assert not any("heldout_accuracy" in metrics for _, metrics in steps)
    assert (state.step, state.best_step, state.best_weights) == (4, 4, {})
    certain = pairs_of(20, 2)
    one, two = run(pairs_of(64, 1), certain), run(pairs_of(64, 1), [*ties[:30], *certain])
    assert one[1] == two[1]
    assert one[0].best_step == two[0].best_step
    mixed = update_scorer(one[0], [*certain[:3], *ties[:5]], config, 4)
    assert mixed["accuracy"] in [pytest.approx(right / 3) for right in range(4)]  # of three, not of eight


def test_a_loss_that_is_not_finite_is_named():
    config = RewardModelConfig(epochs=1)
    state = RewardModelState.start(Scorer(small_trunk()), config)
    torch.nn.init.constant_(state.model.score.weight, float("nan"))
    with pytest.raises(DivergedError, match=r"reward_model\.lr"):
        list(train(state, pairs_of(4, 1), pairs_of(4, 2), config))


def test_scores_over_the_bases_own_responses_have_mean_zero_and_std_one():
    model = Scorer(small_trunk()).initialise(seeded())
    rows = [p.chosen for p in pairs_of(50, 1)]
    normalise(model, rows)
    scores = model.scores(rows)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std()) == pytest.approx(1, abs=1e-5)
    normalise(model, rows[:1])
    assert float(model.std) == 1


def test_an_adapter_with_dropout_learns_the_same_after_a_stop_and_something_else_than_without():
    config, ended = RewardModelConfig(epochs=1, batch_size=16, lr=1e-2, warmup=0, patience=50), []
    for dropout, stop in ((0.0, 0), (0.3, 0), (0.3, 2)):
        trunk = small_trunk(scale=0.1).requires_grad_(False)
        adapter = Adapter(trunk.config, 2, 4.0, TARGETS).initialise(seeded())
        state = RewardModelState.start(Scorer(Adapted(trunk, adapter)).initialise(seeded(1)), config)
        first = train(state, pairs_of(64, 1), [], config, dropout)
        for _ in range(stop):
            next(first)
        list(train(state, pairs_of(64, 1), [], config, dropout))
        ended.append(flat(adapter))
    assert torch.equal(ended[1], ended[2])
    assert not torch.allclose(ended[0], ended[1])


def test_the_weights_in_the_end_are_the_best_and_not_the_last():
    """A state that has seen better: whatever the steps do, the stored weights come back."""
    config = RewardModelConfig(epochs=1, batch_size=16, lr=1e-2, warmup=0)
    model = Scorer(small_trunk(scale=0.1)).initialise(seeded(1))
    state = RewardModelState.start(model, config)
    state.best, state.best_weights = 1.1, {name: t.clone() for name, t in model.state_dict().items()}
    list(train(state, pairs_of(64, 1), pairs_of(20, 2), config))
    assert state.step == 4
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.best_weights[name])
