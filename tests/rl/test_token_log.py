"""The token log: what the update used is the experience's, what it led to is computed here once more, the slow way."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.builtin.losses import ppo_clip, ratio
from minirlhf.models.policy import Reference
from minirlhf.rl import token_log as module
from minirlhf.rl.experience import Experience
from minirlhf.rl.token_log import pieces, rounded, token_log, token_text
from minirlhf.text.tokenizer import train_tokenizer
from tests.helpers import EOS, Letters, built, random_rollout, seeded, small_policy

CLIP = built("loss", ppo_clip, clip=0.2)


class Bytes(Letters):
    """Letters, each of them a token of one byte."""

    def token_bytes(self, token):
        return b"" if token < 3 else bytes([token - 3 + ord("a")])


@pytest.fixture(scope="module")
def moved():
    """A policy after an update, its reference, and the experience of the policy before it."""
    before, after = small_policy(0), small_policy(0)
    with torch.no_grad():
        for parameter in after.model.parameters():
            parameter += 0.05 * torch.sin(torch.arange(parameter.numel()).view(parameter.shape).to(parameter))
    rollout = random_rollout(rows=5, seed=3)
    mask = rollout.mask.clone()
    mask[1] = False  # a response that no reward applied to
    rollout = copy.copy(rollout)
    object.__setattr__(rollout, "mask", mask)
    with torch.no_grad():
        old = before.forward_pass(rollout)
    draw = torch.Generator().manual_seed(5)
    reference = Reference(small_policy(7))
    ref = reference.forward_pass(rollout)
    random = {name: torch.randn(mask.shape, generator=draw) for name in ("kl", "rewards", "advantages", "returns")}
    experience = Experience(
        rollout=rollout, old_logprobs=old.logprobs, ref_logprobs=ref.logprobs, old_values=old.values,
        scores=torch.arange(5.0), ref_log_dist=ref.log_dist, **random,
    )  # fmt: skip
    return after, reference, experience


def rows(moved, loss=CLIP, count=4):
    after, _, experience = moved
    return list(token_log(experience, after, loss, 1.0, Bytes(), count))


def near(values, tensor):
    assert values == pytest.approx(tensor.tolist(), rel=1e-5, abs=1e-6)


def test_a_row_has_an_entry_for_each_real_token_and_no_more(moved):
    rollout = moved[2].rollout
    for index, row in enumerate(rows(moved)):
        size = int(rollout.response_mask[index].sum())
        assert {len(value) for value in row.values() if isinstance(value, list)} == {size}
        assert row["prompt"] == f"p{index}"
        assert row["terminated"] == bool(rollout.terminated[index])
        ids = rollout.completion_id_lists[index]
        assert row["tokens"] == ["" if i == EOS else chr(i - 3 + ord("a")) for i in ids]


def test_what_the_update_used_is_the_experience(moved):
    e = moved[2]
    names = {"old_logprob": "old_logprobs", "kl": "kl", "value": "old_values", "reward": "rewards"}
    for index, row in enumerate(rows(moved)):
        real = e.rollout.response_mask[index]
        for name, field in {**names, "advantage": "advantages"}.items():
            near(row[name], getattr(e, field)[index][real])
    assert [row["score"] for row in rows(moved)] == [0.0, None, 2.0, 3.0]


def test_what_it_led_to_is_read_off_the_whole_distributions(moved):
    after, reference, e = moved
    with torch.no_grad():
        now, ref = after.forward_pass(e.rollout), reference.forward_pass(e.rollout)
        log_p, log_q = now.log_dist(slice(None)).double(), ref.log_dist(slice(None)).double()
    for index, row in enumerate(rows(moved)):
        for t, token in enumerate(e.rollout.completion_id_lists[index]):
            p, q = log_p[index, t].tolist(), log_q[index, t].tolist()
            assert row["logprob"][t] == pytest.approx(p[token], rel=1e-4, abs=1e-5)
            assert row["ref_logprob"][t] == pytest.approx(q[token], rel=1e-4, abs=1e-5)
            exact = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > -math.inf)
            assert row["exact"][t] == pytest.approx(exact, rel=1e-4, abs=1e-5)
            # A row is rounded to six decimals.
            best = sorted(range(13), key=lambda i: -p[i])[:5]
            names = ["<eos>" if i == EOS else chr(i - 3 + ord("a")) for i in best]
            assert [text for text, _, _ in row["likeliest"][t]] == names
            assert [x for _, x, _ in row["likeliest"][t]] == pytest.approx([p[i] for i in best], rel=1e-5, abs=1e-5)
            assert [x for _, _, x in row["likeliest"][t]] == pytest.approx([q[i] for i in best], rel=1e-5, abs=1e-5)


def test_clipped_is_where_the_ratio_left_the_range_in_the_direction_of_the_advantage(moved):
    seen = set()
    for row in rows(moved):
        if row["score"] is None:
            continue
        for held, new, old, advantage in zip(*(row[k] for k in ("clipped", "logprob", "old_logprob", "advantage")), strict=True):  # fmt: skip  # noqa: E501
            rho = math.exp(new - old)
            assert held == ((rho > 1.2 and advantage > 0) or (rho < 0.8 and advantage < 0))
            seen.add(held)
    assert seen == {True, False}
    assert rows(moved, loss=built("loss", ratio))[0]["clipped"] is None  # it says nothing of a clip


def test_a_loss_is_asked_with_what_the_update_gave_it_and_must_say_it_of_each_token(moved):
    def nosy(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta):
        return logprobs, {"clipfrac": (beta * ref_logprobs + advantages < -2.0) & mask}

    e = moved[2]
    expected = (e.ref_logprobs + e.advantages < -2.0) & e.mask
    for index, row in enumerate(rows(moved, loss=built("loss", nosy))):
        assert row["clipped"] == expected[index][e.rollout.response_mask[index]].tolist()
    assert expected.any()
    of_all = built("loss", lambda logprobs: (logprobs, {"clipfrac": logprobs.mean()}))
    assert rows(moved, loss=of_all)[0]["clipped"] is None


@pytest.mark.parametrize(("length", "vocabulary", "shown"), [(2, 13, 5), (6, 4, 4)])
def test_five_alternatives_are_shown_as_far_as_there_are_so_many(length, vocabulary, shown):
    log_dist = torch.randn(1, length, vocabulary, generator=seeded()).log_softmax(-1)
    real = torch.ones(1, length, dtype=torch.bool)
    ((_, choices),) = module.distributions(lambda rows: log_dist[rows], lambda rows: log_dist[rows], real, Bytes())
    assert [len(each) for each in choices] == [shown] * length


def test_a_loss_that_may_count_its_calls_is_not_asked(moved):
    class Counting:
        calls = 0

        def __call__(self, logprobs, advantages):
            Counting.calls += 1
            return logprobs * advantages, {"clipfrac": logprobs}

    assert rows(moved, loss=built("loss", Counting))[0]["clipped"] is None
    assert Counting.calls == 0


def test_the_same_where_the_distributions_of_a_row_are_all_that_fits(moved, monkeypatch):
    whole = rows(moved)
    monkeypatch.setattr(module, "NUMBERS", 1)
    assert rows(moved) == whole


def test_weights_that_are_not_finite_are_logged_as_unknown_and_refused_elsewhere(moved):
    after, _, experience = moved
    broken = copy.deepcopy(after)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    row = next(token_log(experience, broken, CLIP, 1.0, Bytes(), 1))
    assert set(row["logprob"]) == set(row["exact"]) == {None}
    assert row["likeliest"] == [[]] * len(row["tokens"])
    assert None not in row["ref_logprob"]


def test_a_loss_may_take_a_gradient_itself_or_refuse_to_be_asked_again(moved):
    def own_gradient(logprobs, old_logprobs, advantages):
        loss = -(logprobs - old_logprobs).exp() * advantages
        (slope,) = torch.autograd.grad(loss.sum(), logprobs, retain_graph=True)
        return loss, {"clipfrac": (slope < 0).float()}

    for row in rows(moved, loss=built("loss", own_gradient)):  # the slope of -rho A is below 0 where A is above
        assert row["clipped"] == [x > 0 for x in row["advantage"]]

    def never(logprobs):
        raise ValueError("no")

    assert rows(moved, loss=built("loss", never))[0]["clipped"] is None


def test_no_more_rows_than_there_are_and_none_if_none_are_wanted(moved):
    assert len(rows(moved, count=64)) == 5
    assert rows(moved, count=0) == []


def test_nothing_moves_for_being_logged(moved):
    after, reference, experience = moved
    random, weights = torch.get_rng_state(), copy.deepcopy(after.state_dict())
    rows(moved)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in after.state_dict().items())
    assert all(p.grad is None for p in after.parameters())
    assert reference.unchanged()
    assert not experience.advantages.isnan().any()


# ---- texts -------------------------------------------------------------------------------------------------

TOKENIZER = train_tokenizer(["the café of the señor", "日本語 日本語"], 300)


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_the_pieces_are_together_the_text(ids):
    found = pieces(TOKENIZER, ids)
    assert len(found) == len(ids)
    assert "".join(found) == TOKENIZER.decode(ids)


def test_a_character_stands_where_its_last_byte_is():
    ids = TOKENIZER.encode("€")  # three bytes, no merge of them was learned
    assert [len(TOKENIZER.token_bytes(i)) for i in ids] == [1, 1, 1]
    assert pieces(TOKENIZER, ids) == ["", "", "€"]
    assert [token_text(TOKENIZER, i) for i in ids] == ["\\xe2", "\\x82", "\\xac"]
    special = (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id)
    assert [token_text(TOKENIZER, i) for i in special] == ["<pad>", "<bos>", "<eos>"]


def test_numbers_keep_six_decimals_and_what_is_not_finite_is_none():
    values = torch.tensor([1 / 3, -1234567.25, math.nan, math.inf, -math.inf, 0.0])
    assert rounded(values) == [0.333333, -1234567.25, None, None, None, 0.0]
    assert json.dumps(rounded(values[:2])) == "[0.333333, -1234567.25]"
