"""Inputs of components: the fields are those of the contract, and rows with a slot behind the EOS by hand."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from minirlhf.builtin.advantages import gae
from minirlhf.builtin.kl import ratio_k3
from minirlhf.builtin.losses import ratio
from minirlhf.components.checks import DeferredChecks
from minirlhf.components.component import INPUTS
from minirlhf.errors import PluginError
from minirlhf.rl import terms
from minirlhf.rl.guards import OWN_METRICS
from minirlhf.rl.terms import AdvantageInputs, KLInputs, LossInputs, compute_loss, one_slot_more, policy_loss
from tests.helpers import built


@pytest.mark.parametrize(("kind", "inputs"), [("kl", KLInputs), ("advantage", AdvantageInputs), ("loss", LossInputs)])
def test_the_inputs_are_those_that_a_component_may_name(kind, inputs):
    assert sorted(field.name for field in fields(inputs)) == sorted(INPUTS[kind])


def test_a_score_behind_the_eos_by_hand():
    """Two tokens, V = .5, 1 and 3 behind the EOS, score 4, penalty .1 a token, gae with lambda .5:
    slot: 4 - 3 = 1; last: -.1 + 3 - 1 + .5 x 1 = 2.4; first: -.1 + 1 - .5 + .5 x 2.4 = 1.6. The second row was cut: its
    score 4 is on its last token: 3.9 - 1 = 2.9, and -.1 + 1 - .5 + .5 x 2.9 = 1.85. The third takes no part."""
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    inputs = AdvantageInputs(
        rewards=torch.full((3, 2), float("nan")),
        values=torch.tensor([[0.5, 1.0]] * 3),
        mask=mask,
        scores=torch.tensor([4.0, 4.0, 0.0]),
        greedy_scores=None,
        group=torch.arange(3),
        logprobs=torch.zeros(3, 2),
        ref_logprobs=torch.zeros(3, 2),
        kl=torch.ones(3, 2),
        terminated=torch.tensor([True, False, True]),
        bootstrap_values=torch.zeros(3),
    )
    after = torch.tensor([3.0, 7.0, 9.0])
    wide = one_slot_more(inputs, torch.zeros(3, 2), torch.full((3, 2), 0.1), after)
    assert wide.mask.tolist() == [[True] * 3, [True, True, False], [False] * 3]
    found = gae(wide.rewards, wide.values, wide.mask, wide.bootstrap_values, lam=0.5)
    assert torch.allclose(found, torch.tensor([[1.6, 2.4, 1.0], [1.85, 2.9, 0.0], [0.0, 0.0, 0.0]]))
    # A response that is nothing but an EOS has its slot behind that.
    short = replace(inputs, mask=torch.tensor([[True, False]] * 3), terminated=torch.tensor([True, False, True]))
    assert one_slot_more(short, torch.zeros(3, 2), torch.zeros(3, 2), after).mask.sum(dim=1).tolist() == [2, 1, 2]
    # At lambda 1 the place does not matter: what V behind the EOS says cancels.
    one = gae(wide.rewards, wide.values, wide.mask, wide.bootstrap_values, lam=1.0)
    assert torch.allclose(one[0, :2], torch.tensor([4 - 0.2 - 0.5, 4 - 0.1 - 1.0]))


@pytest.mark.parametrize("name", OWN_METRICS)
def test_a_loss_cannot_log_under_a_name_of_the_loop(name):
    """Its `approxkl` would take the place of the one that ends the epochs (ppo.target_kl)."""

    def loss(logprobs, mask):
        return -logprobs, {name: 7.0}

    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(PluginError, match=f"logs a metric '{name}', but policy/{name}_avg is a metric of the loop"):
        compute_loss(built("loss", loss), LossInputs(x, x, x, x, mask, 0.0))


def constant(logprobs, advantages):
    return 0.0 * logprobs + advantages


@pytest.mark.parametrize(("loss", "factor"), [(ratio, 1.0), (constant, 0.0)])
def test_the_gradient_of_the_loss_alone_at_the_log_probs(loss, factor):
    """d(-A rho)/d log pi = -A rho, with rho = e^0.5 on the second token; a constant has none. Junk is not asked."""
    new = SimpleNamespace(logprobs=torch.tensor([[-1.0, -1.5, torch.nan]], requires_grad=True))
    mask = torch.tensor([[True, True, False]])
    micro = SimpleNamespace(
        old_logprobs=torch.tensor([[-1.0, -2.0, 0.0]]), ref_logprobs=torch.zeros(1, 3),
        advantages=torch.tensor([[2.0, -3.0, 9.0]]), mask=mask,
    )  # fmt: skip
    values, logged = policy_loss(built("loss", loss), new, micro, 1.0)
    found = logged["policy/logprob_grad_avg"]
    assert found[mask].tolist() == pytest.approx([2.0 * factor, 3.0 * math.exp(0.5) * factor])
    assert new.logprobs.grad is None  # nothing is left behind for the backward pass
    values.sum().backward()
    assert new.logprobs.grad[0, :2].tolist() == pytest.approx([-2.0 * factor, 3.0 * math.exp(0.5) * factor])


def test_a_kl_in_the_loss_sees_new_old_and_reference_each_for_what_it_is():
    """ratio_k3 by hand: rho = e^0.5 and e^-1; d = -0.5 and 1, so k3 = e^0.5 - 1.5 and e^-1. On its own rollout the
    policy is its own old one: rho = 1."""
    mask = torch.tensor([[True, True, False]])
    ref, new = torch.tensor([[-0.5, -3.0, torch.nan]]), torch.tensor([[-1.0, -2.0, torch.nan]])
    k3 = [math.exp(0.5) - 1.5, math.exp(-1), 0.0]
    micro = SimpleNamespace(
        old_logprobs=torch.tensor([[-1.5, -1.0, torch.nan]]), ref_logprobs=ref, mask=mask, ref_log_dist=None
    )
    policy = SimpleNamespace(logprobs=new, log_dist=None)
    found = terms.loss_kl(built("kl", ratio_k3), policy, micro, DeferredChecks())
    assert found[0].tolist() == pytest.approx([math.exp(0.5) * k3[0], math.exp(-1) * k3[1], 0.0])
    reference = SimpleNamespace(logprobs=ref, log_dist=None)
    own = terms.kl(built("kl", ratio_k3), policy, reference, OneRow(mask), 4)
    assert own[0].tolist() == pytest.approx(k3)


def test_a_kl_in_the_loss_is_checked_together_with_all_other_numbers():
    """Reading it at once would wait for the device."""

    def broken(logprobs, mask):
        return logprobs / 0.0

    policy = SimpleNamespace(logprobs=torch.full((1, 2), -1.0), log_dist=None)
    x, mask, later = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), DeferredChecks()
    micro = SimpleNamespace(old_logprobs=x, ref_logprobs=x, mask=mask, ref_log_dist=None)
    assert terms.loss_kl(built("kl", broken), policy, micro, later).isinf().all()
    (check,) = later
    with pytest.raises(PluginError, match="expected a finite number, got -inf"):
        check()


class OneRow:
    """As much of a rollout as a KL of taken tokens reads."""

    def __init__(self, mask):
        self.mask = mask

    def __len__(self):
        return len(self.mask)


def shaped_scores(**changed):
    """Two responses of two tokens, of which the first ended, and one that takes no part; scores 4, penalty .1."""
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    given = {
        "rollout": SimpleNamespace(mask=mask, group=torch.arange(3), terminated=torch.tensor([True, False, True])),
        "scores": torch.tensor([4.0, 4.0, 0.0]),
        "greedy_scores": torch.tensor([1.0, 2.0, 3.0]),
        "token_rewards": torch.zeros(3, 2),
        "bootstrap": torch.tensor([0.0, 5.0, 0.0]),
        "slot_returns": None,
    }
    return SimpleNamespace(**(given | changed))


ACTIVE = SimpleNamespace(
    values=torch.tensor([[0.5, 1.0]] * 3), logprobs=torch.full((3, 2), -1.0), next_value=torch.tensor([3.0, 7.0, 9.0])
)
REFERENCE = SimpleNamespace(logprobs=torch.full((3, 2), -2.0))
REWARDS, PENALTY = torch.tensor([[-0.1, 3.9], [-0.1, 3.9], [0.0, 0.0]]), torch.full((3, 2), 0.1)


def test_an_advantage_function_is_given_each_of_its_inputs_and_junk_is_0():
    seen = {}

    def nosy(
        rewards, values, mask, scores, greedy_scores, group, logprobs, ref_logprobs, kl, terminated, bootstrap_values
    ):
        seen.update(locals())
        return torch.ones_like(rewards)

    shaped, kl = shaped_scores(), torch.full((3, 2), 0.7)
    found = terms.advantages(built("advantage", nosy), REWARDS, PENALTY, kl, ACTIVE, REFERENCE, shaped)
    assert found.tolist() == [[1, 1], [1, 1], [0, 0]]
    expected = {
        **{"rewards": REWARDS, "values": ACTIVE.values, "mask": shaped.rollout.mask, "scores": shaped.scores},
        **{"greedy_scores": shaped.greedy_scores, "group": shaped.rollout.group, "logprobs": ACTIVE.logprobs},
        **{"ref_logprobs": REFERENCE.logprobs, "kl": kl, "terminated": shaped.rollout.terminated},
        "bootstrap_values": shaped.bootstrap,
    }
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


def test_advantages_with_the_score_on_the_last_token_and_behind_the_eos_by_hand():
    """gae with lambda .5, as above. Last token: 3.9 - 1 = 2.9, first: -.1 + 1 - .5 + .5 x 2.9 = 1.85. Behind the EOS,
    where V is 3: 1.6 and 2.4, and the slot itself is no token. The second was cut and has none; V of what it would
    still have earned, 5, is added to its end: 2.9 + 5 and 1.85 + .5 x 5."""
    function, kl = built("advantage", gae, lam=0.5), torch.zeros(3, 2)
    last = terms.advantages(function, REWARDS, PENALTY, kl, ACTIVE, REFERENCE, shaped_scores())
    assert torch.allclose(last, torch.tensor([[1.85, 2.9], [4.35, 7.9], [0.0, 0.0]]))
    behind = shaped_scores(slot_returns=torch.tensor([4.0, math.nan, math.nan]))
    after = terms.advantages(function, REWARDS, PENALTY, kl, ACTIVE, REFERENCE, behind)
    assert torch.allclose(after, torch.tensor([[1.6, 2.4], [4.35, 7.9], [0.0, 0.0]]))


def test_a_policy_loss_is_given_each_of_its_inputs():
    seen = {}

    def nosy(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta):
        seen.update(old=old_logprobs, ref=ref_logprobs, advantages=advantages, mask=mask, beta=beta)
        return -advantages * logprobs

    x = torch.tensor([[-1.0, -2.0]])
    mask = torch.tensor([[True, False]])
    micro = SimpleNamespace(old_logprobs=x - 1, ref_logprobs=x - 2, advantages=x - 3, mask=mask)
    policy_loss(built("loss", nosy), SimpleNamespace(logprobs=x), micro, 0.7)
    assert [seen[name][0, 0].item() for name in ("old", "ref", "advantages")] == [-2.0, -3.0, -4.0]
    assert (seen["mask"].tolist(), seen["beta"]) == (mask.tolist(), 0.7)
