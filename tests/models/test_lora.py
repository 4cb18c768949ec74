"""Adapters: W x + alpha/r B A x by hand, the backbone itself while B is 0, and nothing of it among the parameters."""

import copy

import pytest
import torch
from torch import nn

from minirlhf.config.schema import TARGETS
from minirlhf.models.attention import KVCache
from minirlhf.models.lora import (
    PARTS,
    Adapted,
    Adapter,
    LowRank,
    backbone_of,
    dropped,
    dropping,
    learner,
    projection_sizes,
)
from minirlhf.models.optimizer import AdamW
from minirlhf.models.packing import Packing
from minirlhf.models.policy import Policy, Reference, weights_hash
from minirlhf.models.sampler import Sampler
from tests.helpers import BOS, CONFIG, EOS, PAD, random_rollout, seeded, small_trunk

RANK = 3  # tolerances of 1e-12 are the rounding of float64: sums are taken in another order


def adapted(backbone=None, *, learned=False, targets=TARGETS):
    backbone = (backbone or small_trunk()).requires_grad_(False)
    adapter = Adapter(backbone.config, RANK, 6.0, targets).to(torch.get_default_dtype()).initialise(seeded(5))
    if learned:
        with torch.no_grad():
            for low in (module for module in adapter.modules() if isinstance(module, LowRank)):
                low.B.copy_(torch.randn(low.B.shape, generator=seeded(6)) * 0.1)
    return Adapted(backbone, adapter)


def ids():
    return torch.randint(3, 13, (3, 9), generator=seeded(7))


def test_one_projection_by_hand():
    """x = (1, 2), A = [[1, 1]], B = [[2], [0], [1]], alpha / r = 3: B A x = 3 (2, 0, 1), times 3."""
    low = LowRank(2, 3, 1, 3.0)
    with torch.no_grad():
        low.A.copy_(torch.tensor([[1.0, 1.0]]))
        low.B.copy_(torch.tensor([[2.0], [0.0], [1.0]]))
    assert low(torch.tensor([1.0, 2.0])).tolist() == [18.0, 0.0, 9.0]
    assert low.product().tolist() == [[6.0, 6.0], [0.0, 0.0], [3.0, 3.0]]


def test_an_adapter_begins_as_the_backbone_to_the_bit_and_then_is_another_model():
    trunk, x = adapted(), ids()
    assert torch.equal(trunk(x), trunk.backbone(x))
    assert not torch.equal(adapted(learned=True)(x), trunk.backbone(x))


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj",), ("down_proj", "v_proj")])
def test_merged_it_is_the_same_model(double, targets):
    trunk, x = adapted(learned=True, targets=targets), ids()
    torch.testing.assert_close(trunk.merged()(x), trunk(x), rtol=0, atol=1e-12)
    changed = [n for n, w in trunk.merged().named_parameters() if not torch.equal(w, trunk.backbone.state_dict()[n])]
    assert {name.split(".")[-2] for name in changed} == set(targets)


def test_decoding_and_packed_passes_go_through_it_alike(double):
    trunk, x = adapted(learned=True), ids()
    cache = KVCache(trunk.config, 3, 9, trunk.embed_tokens.weight)
    pieces = torch.cat([trunk(x[:, i : i + 1], cache=cache) for i in range(9)], dim=1)
    torch.testing.assert_close(pieces, trunk(x), rtol=0, atol=1e-12)
    packed = trunk.packed(x.flatten(), Packing.of([9, 9, 9])).view(3, 9, -1)
    torch.testing.assert_close(packed, trunk(x), rtol=0, atol=1e-12)


def test_parameters_state_and_copies_hold_the_adapter_alone():
    trunk = adapted()
    policy = Policy(trunk, Sampler(1.0, (PAD, BOS), (EOS,)), separate_critic=True)
    sizes = projection_sizes(CONFIG)
    each = 2 * sum(RANK * (sizes[name][0] + sizes[name][1]) for name in TARGETS)  # two blocks
    head = CONFIG.hidden_size + 1
    assert sum(p.numel() for p in policy.parameters()) == 2 * each + head
    assert sum(t.numel() for t in policy.state_dict().values()) == 2 * each + head + 1  # and the unit of V
    assert policy.critic.backbone is trunk.backbone
    assert policy.critic.adapter is not trunk.adapter
    assert copy.deepcopy(trunk).backbone is trunk.backbone
    assert backbone_of(trunk) is trunk.backbone


def test_gradients_reach_the_adapter_and_not_the_backbone():
    trunk = adapted(learned=True)
    trunk(ids()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trunk.parameters())
    assert all(p.grad is None for p in trunk.backbone.parameters())


def test_recomputation_gives_the_same_gradient_to_the_bit():
    found = []
    for recompute in (False, True):
        trunk = adapted(learned=True)
        trunk.backbone.recompute = recompute
        trunk.packed(ids().flatten(), Packing.of([9, 9, 9])).square().sum().backward()
        found.append([p.grad for p in trunk.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    saved = []
    for recompute in (False, True):
        trunk, kept = small_trunk(), []
        trunk.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            trunk.packed(ids().flatten(), Packing.of([9, 9, 9]))
        saved.append(sum(kept))
    assert saved[1] < saved[0] / 4


def test_dropped_inputs_are_zero_and_the_others_keep_the_mean():
    x = torch.full((100, 100), 3.0)
    out = dropped(x, 0.25, 1)
    assert set(out.unique().tolist()) == {0.0, 4.0}  # 3 / (1 - 1/4)
    # 10,000 draws of probability 1/4: four standard deviations are 4 sqrt(.25 .75 / 10,000) = .0173.
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.0173)
    assert torch.equal(out, dropped(x, 0.25, 1))
    assert not torch.equal(out, dropped(x, 0.25, 2))


def test_dropout_touches_the_adapter_alone_in_its_block_alone_and_each_projection_apart():
    trunk, fresh = adapted(learned=True), adapted()
    plain = trunk(ids())
    with dropping(nn.ModuleDict({"model": trunk}), 0.5, seeded(1)), dropping(fresh, 0.5, seeded(1)):
        assert torch.equal(fresh(ids()), fresh.backbone(ids()))  # B is 0: nothing to drop
        first, second = trunk(ids()), trunk.packed(ids().flatten(), Packing.of([9, 9, 9])).view(plain.shape)
        seen, drop = [], trunk.adapter.for_a_pass().keywords["drop"]
        for name in ("q_proj", "k_proj"):
            linear = nn.Linear(16, 16, bias=False).requires_grad_(False)
            low = LowRank(16, 16, 16, 1.0)
            low.A.data, low.B.data, linear.weight.data = torch.eye(16), torch.eye(16), torch.zeros(16, 16)
            trunk.adapter.layers[0][name] = low
            seen.append(trunk.adapter.project(0, linear, name, torch.ones(9, 16), drop))
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(*seen)
    again = adapted(learned=True)
    with dropping(again, 0.5, seeded(1)):
        assert torch.equal(again(ids()), first)
    assert torch.equal(again(ids()), plain)


def test_a_block_that_is_computed_again_drops_the_same():
    found = []
    for recompute in (False, True):
        trunk = adapted(learned=True)
        trunk.backbone.recompute = recompute
        with dropping(trunk, 0.5, seeded(1)):
            hidden = trunk.packed(ids().flatten(), Packing.of([9, 9, 9]))
        hidden.square().sum().backward()
        found.append([p.grad for p in trunk.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_learner_leaves_what_it_begins_with_alone():
    """A copy of all weights; a new adapter on the backbone itself; or a copy of the adapter that is there."""
    whole, adapter = small_trunk(), Adapter(CONFIG, 2, 4.0, ("q_proj",))
    assert learner(whole, None) is not whole
    assert learner(whole, adapter).backbone is whole
    tuned = adapted(learned=True).requires_grad_(False)
    onward = learner(tuned, adapter)
    assert onward.backbone is tuned.backbone
    assert onward.adapter.rank == RANK
    assert all(p.requires_grad for p in onward.parameters())
    with torch.no_grad():
        onward.adapter.layers[0]["q_proj"].B.add_(1)
    assert not torch.equal(onward(ids()), tuned(ids()))


def test_a_shared_reference_is_the_backbone_itself_and_knows_if_it_is_written_to():
    trunk = adapted()
    reference = Reference(Policy(trunk.backbone, Sampler(1.0, (PAD, BOS), (EOS,))), shared=True)
    assert reference.policy.model is trunk.backbone
    assert reference.unchanged()
    assert weights_hash(trunk) != weights_hash(trunk.backbone)
    before = weights_hash(trunk)
    with torch.no_grad():
        trunk.backbone.norm.weight[0] += 1
    assert not reference.unchanged()
    assert weights_hash(trunk) != before


def test_beside_bfloat16_sampling_and_learning_round_alike_and_steps_are_seen():
    """The copies that decoding keeps in bfloat16 are made anew after every step of the optimiser."""
    trunk = adapted(small_trunk().to(torch.bfloat16), learned=True)
    policy = Policy(trunk, Sampler(1.0, (PAD, BOS), (EOS,)))
    assert policy.value_head.weight.dtype == trunk.adapter.layers[0]["q_proj"].A.dtype == torch.float32
    rollout, optimizer = random_rollout(4, 5), AdamW(policy.parameters(), lr=0.1)
    for _ in range(3):
        with torch.no_grad():
            before = policy.forward_pass(rollout).logprobs
        now = policy.forward_pass(rollout).logprobs
        assert now.dtype == torch.float32
        assert torch.equal(now.detach(), before)
        now.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert not torch.equal(policy.forward_pass(rollout).logprobs, before)


def test_the_projections_of_a_config_are_those_of_a_block():
    assert tuple(PARTS) == TARGETS
    block = small_trunk().layers[0]
    for name, (inputs, outputs) in projection_sizes(CONFIG).items():
        linear = block.get_submodule(f"{PARTS[name]}.{name}")
        assert (linear.in_features, linear.out_features) == (inputs, outputs)
