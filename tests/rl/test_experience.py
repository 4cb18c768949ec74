"""What flows: shapes are held in one place, rows stay together, minibatches cover everything once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minirlhf.rl.experience import Experience
from minirlhf.tensors import Whitened
from tests.helpers import random_rollout, seeded


def experience(rows=7):
    rollout = random_rollout(rows)
    b, r = rollout.mask.shape
    marks = torch.arange(b * r, dtype=torch.float32).view(b, r)
    names = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
    return Experience(
        rollout=rollout,
        scores=torch.arange(b, dtype=torch.float32),
        ref_log_dist=lambda rows: marks.unsqueeze(-1)[rows],
        **{name: marks + i * 1000 for i, name in enumerate(names)},
    )


def test_wrong_shapes_and_dtypes_are_refused_where_the_object_is_built():
    e = experience()
    with pytest.raises(ValueError, match="kl must be float of shape"):
        replace(e, kl=e.kl[:, :-1])
    with pytest.raises(ValueError, match="scores must be float"):
        replace(e, scores=e.scores.long())
    with pytest.raises(ValueError, match="must not require grad"):
        replace(e, rewards=e.rewards.clone().requires_grad_())
    with pytest.raises(ValueError, match="mask must be bool"):
        replace(e.rollout, mask=e.rollout.mask.float())
    with pytest.raises(ValueError, match="prompts must hold 7 values"):
        replace(e.rollout, prompts=("a",))


def test_it_is_built_from_what_the_loop_has_computed():
    """Tensors 0 to 8000: each has a place of its own."""
    rollout = random_rollout(2)
    kl, rewards, advantages, returns, new, ref, values = (torch.full(rollout.mask.shape, 1000.0 * i) for i in range(7))
    scores, slot = torch.tensor([1.0, 2.0]), torch.tensor([3.0, float("nan")])
    shaped = SimpleNamespace(rollout=rollout, scores=scores, slot_returns=slot)
    active = SimpleNamespace(logprobs=new, values=values)
    reference = SimpleNamespace(logprobs=ref, log_dist=lambda rows: ref[rows])
    e = Experience.build(shaped, active, reference, kl, rewards, Whitened(advantages, 1.0), returns)
    assert (e.rollout, e.scores, e.slot_returns, e.ref_log_dist) == (rollout, scores, slot, reference.log_dist)
    assert (e.kl, e.rewards, e.advantages, e.returns) == (kl, rewards, advantages, returns)
    assert (e.old_logprobs, e.ref_logprobs, e.old_values) == (new, ref, values)


def test_the_order_of_minibatches_is_the_generators():
    first, again = ([b.scores.tolist() for b in experience(50).minibatches(50, seeded(3))] for _ in range(2))
    assert first == again


def test_minibatches_are_a_fresh_permutation_of_all_rows_that_stay_together():
    e = experience()
    batches = list(e.minibatches(3, seeded()))
    assert [len(b) for b in batches] == [3, 3, 1]
    order = torch.cat([b.scores for b in batches]).long()
    assert sorted(order.tolist()) == list(range(7))
    assert order.tolist() != list(range(7))
    assert order.tolist() != torch.cat([b.scores for b in e.minibatches(3, seeded(1))]).long().tolist()
    for b in batches:
        rows = b.scores.long()
        assert torch.equal(b.kl, e.kl[rows])
        assert torch.equal(b.rollout.response_ids, e.rollout.response_ids[rows])
        assert b.rollout.completions == tuple(f"c{i}" for i in rows)
        assert torch.equal(b.ref_log_dist(slice(None)).squeeze(-1), e.old_logprobs[rows])
        (_, first), *_ = b.micro_batches(2)
        assert torch.equal(first.ref_log_dist(slice(None)).squeeze(-1), e.old_logprobs[rows[:2]])


def test_micro_batches_keep_the_order():
    parts = list(experience().micro_batches(3))
    assert [p.start for p, _ in parts] == [0, 3, 6]
    assert torch.cat([m.scores for _, m in parts]).tolist() == list(range(7))


def test_rows_that_leave_keep_their_tokens_but_lose_their_mask():
    rollout = random_rollout(3)
    kept = rollout.keeping(torch.tensor([True, False, True]))
    assert not kept.mask[1].any()
    assert torch.equal(kept.mask[[0, 2]], rollout.mask[[0, 2]])
    assert torch.equal(kept.response_mask, rollout.response_mask)
