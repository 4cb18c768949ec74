"""Scoring: the same numbers from any padding, chunk or micro-batch; the value head; the frozen reference."""

import pytest
import torch

from minirlhf.models import policy as policy_module
from minirlhf.models.policy import Reference, weights_hash
from tests.helpers import BOS, EOS, PAD, padded, random_rollout, small_policy

pytestmark = pytest.mark.usefixtures("double")


def test_logprobs_entropy_and_values_one_row_at_a_time_by_definition():
    """Each response token by a separate, unpadded forward pass over the text before it."""
    policy, rollout = small_policy(temperature=0.7), random_rollout()
    output = policy.forward_pass(rollout)
    for row in range(len(rollout)):
        ids = rollout.prompt_id_lists[row]
        for t, token in enumerate(rollout.completion_id_lists[row]):
            hidden = policy.model(torch.tensor([ids]))[0, -1]
            logits = policy.model.embed_tokens.weight @ hidden / 0.7
            logits[[PAD, BOS]] = float("-inf")
            p = logits.softmax(0)
            assert output.logprobs[row, t].item() == pytest.approx(p[token].log().item(), abs=1e-10)
            entropy = -(p[p > 0] * p[p > 0].log()).sum().item()
            assert output.entropy()[row, t].item() == pytest.approx(entropy, abs=1e-10)
            assert output.values[row, t].item() == pytest.approx(policy.value_head(hidden).item(), abs=1e-10)
            assert torch.allclose(output.log_dist(slice(row, row + 1))[0, t].exp(), p, atol=1e-10)
            ids = [*ids, token]
        after = policy.value_head(policy.model(torch.tensor([ids]))[0, -1]).item()
        assert output.next_value[row].item() == pytest.approx(after, abs=1e-10)


@pytest.mark.parametrize(("left", "right"), [(0, 1), (1, 0), (3, 5), (16, 16)])
def test_padding_on_either_side_changes_neither_scores_nor_gradients(left, right):
    def scores_and_gradient(rollout):
        policy = small_policy()
        out = policy.forward_pass(rollout)
        total = (out.logprobs * 0.3 + out.values.square() + out.entropy())[rollout.mask].sum() + out.next_value.sum()
        total.backward()
        scores = {"logprobs": out.logprobs, "entropy": out.entropy(), "values": out.values}
        return out, scores, torch.cat([p.grad.flatten() for p in policy.parameters()])

    plain, scores, gradient = scores_and_gradient(random_rollout())
    wide, wide_scores, wide_gradient = scores_and_gradient(padded(random_rollout(), left, right))
    for name, values in scores.items():
        assert (values - wide_scores[name][:, : values.shape[1]]).abs().max() < 1e-10
    assert (plain.next_value - wide.next_value).abs().max() < 1e-10
    assert (gradient - wide_gradient).abs().max() < 1e-10


def test_chunks_of_any_size_give_the_same_scores_and_gradients(monkeypatch):
    def gradient():
        policy, rollout = small_policy(), random_rollout()
        out = policy.forward_pass(rollout)
        (out.logprobs + out.entropy()).sum().backward()
        return out.logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    whole = gradient()
    for name in ("CHUNK_LOGITS", "CHUNK_READ"):
        monkeypatch.setattr(policy_module, name, 5 * 13)  # five tokens at a time
    for a, b in zip(whole, gradient(), strict=True):
        assert (a - b).abs().max() < 1e-12
    with torch.no_grad():
        assert (small_policy().forward_pass(random_rollout()).logprobs - whole[0]).abs().max() < 1e-12


def test_padding_has_finite_scores_so_that_no_nan_can_reach_a_gradient():
    policy, rollout = small_policy(), random_rollout()
    out = policy.forward_pass(rollout)
    assert (rollout.response_ids[~rollout.mask] == PAD).all()
    assert (out.logprobs[~rollout.mask] == 0).all()
    (out.logprobs - out.logprobs.detach()).exp().sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.model.parameters())


def test_values_start_at_zero_and_a_separate_critic_leaves_the_trunk_alone():
    from minirlhf.models.policy import Policy
    from minirlhf.models.sampler import Sampler
    from tests.helpers import small_trunk

    sampler = Sampler(1.0, banned=(PAD, BOS), stops=(EOS,))
    policy = Policy(small_trunk(), sampler, separate_critic=True)
    rollout = random_rollout()
    assert (policy.forward_pass(rollout).values == 0).all()
    torch.nn.init.ones_(policy.value_head.weight)
    policy.forward_pass(rollout).values.sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert any(p.grad.abs().sum() > 0 for p in policy.critic.parameters())
    shared = Policy(small_trunk(), sampler)
    torch.nn.init.ones_(shared.value_head.weight)
    shared.forward_pass(rollout).values.sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in shared.model.parameters())


def test_the_reference_is_a_distinct_frozen_object_whose_hash_notices_one_changed_bit():
    policy = small_policy()
    reference, rollout = Reference(policy), random_rollout()
    before = reference.forward_pass(rollout).logprobs
    assert torch.equal(before, policy.forward_pass(rollout).logprobs)
    with torch.no_grad():
        policy.model.norm.weight += 1
    assert torch.equal(reference.forward_pass(rollout).logprobs, before)
    assert not before.requires_grad
    assert reference.hash != weights_hash(policy.model)
    assert reference.unchanged()
    with torch.no_grad():
        reference.policy.model.norm.weight[0] += 1e-15 + torch.finfo(torch.float64).eps * 2
    assert not reference.unchanged()
