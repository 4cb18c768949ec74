"""The calculated memory of a run: by hand, against what autograd saves, and against what the allocator hands out."""

import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from minirlhf.builtin.kl import exact
from minirlhf.models import policy as policy_module
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.memory import (
    PROJECTIONS,
    MemorySizes,
    activation_bytes,
    distribution_bytes,
    learning_bytes,
    plan_memory,
    process_bytes,
    reading_bytes,
)
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import Rollout
from minirlhf.models.transformer import Transformer
from tests.helpers import CONFIG, Letters, seeded, small_policy

# Heads of size 2: Q = 4, K = 2. Matrices of a block: 16 + 8 + 8 + 16 + 3 * 24 = 120; weights: 40 + 2 (120 + 8) + 4.
HAND = MemorySizes(
    vocab_size=10, hidden_size=4, intermediate_size=6, layers=2, heads=2, kv_heads=1, head_dim=2,
    rows=3, prompt_tokens=2, new_tokens=3, micro_rows=2,
)  # fmt: skip


# A tenth (rel=0.1): tensors of a few bytes, and those that live for a moment within an operation, are not counted.
def listed(plan):
    return {field.name: getattr(plan, field.name) for field in fields(plan)}


def test_all_weights_learn_by_hand():
    assert (HAND.backbone_parameters, HAND.adapter_parameters, HAND.trained_parameters) == (300, 0, 305)
    plan = plan_memory(HAND, baseline=1000)
    assert listed(plan) == {
        "baseline": 1000,
        "weights": 1200,
        "reference": 1200,
        "adapters": 20,  # the value head: 4 weights and a bias
        "optimizer": 2 * 4 * 305,
        "cache": 864,  # 2 x 2 layers x 3 rows x 5 tokens x 2 numbers x 4 bytes = 480, and 0.8 of it
        # Logits 3 x 10 x 16 = 480, and merged weights: 2 layers x (4 heads of 2 + 2 x 6) x 4 W x 4 bytes = 640. More
        # than the prompts: 6 tokens x (2 x 4 W + 4 (2 Q + 4 K) + 2 x 16) = 768.
        "rollout_work": 1120,
        "states": 2 * 9 * 16,
        "score_pass": 15 * 176,  # 2 x 4 W, 4 (2 Q + 4 K), and twice the weights of attention: 4 x 2 heads x 5 slots
        "score_logits": 4 * 4 * 9 * 10 + 15 * 16,  # and the hidden states of 15 tokens
        "gradients": 4 * 305,
        # 10 tokens; norms 72, attention 4 (8 + 4) + 4 x 2 x 5 = 88, MLP 72, inputs 4 (4 + 4 + 6) = 56: 288 a block.
        # Around: angles 16, norm 36, hidden 16, id 8. States of 6 response tokens: 96.
        "activations": 10 * (2 * 288 + 76) + 96,
        "learn_logits": 3 * 4 * 6 * 10 + 10 * 4 * 4,
        "backward_work": 10 * 2 * 40,  # two gradients of the weights of attention, or of the inner width: 4 x 6
        "heap": 1220 + 6616 + 800,  # as much as is learned with, and HEAP at most; none on a card
    }
    assert plan_memory(HAND).heap == 0
    always = 1000 + 1200 + 1200 + 20 + 2440
    assert (plan.rollout, plan.score) == (always + 864 + 1120, always + 288 + 15 * 176)
    assert plan.learn == plan.peak == always + 1220 + 6616 + 880 + 8636


def test_adapters_beside_bfloat16_by_hand():
    """Rank 1 on q and v: (4 + 4) + (4 + 2) = 14 a block. Policy and critic have one each, and share the backbone."""
    sizes = replace(HAND, weight_bytes=2, lora_rank=1, lora_targets=("q_proj", "v_proj"), separate_critic=True)
    assert (sizes.adapter_parameters, sizes.trained_parameters) == (28, 61)
    found = listed(plan_memory(sizes))
    expected = {
        "weights": 600,
        "reference": 0,
        "adapters": 2 * 28 * (4 + 2) + 20,  # in float32, and in bfloat16 to decode with
        "optimizer": 2 * 4 * 61,
        "cache": 432,
        "states": 144,
        "gradients": 244,
        # Norms 40, attention 2 (8 + 4) + 8 = 32, MLP 36, inputs 2 x 4 shared and 2 x 1 x 2: 120; casts 2 x 14 a block.
        # Around: angles 8, norm 20, hidden 8 and 16 for the value head, id 8.
        "activations": 2 * (2 * (10 * 120 + 28) + 10 * 60) + 48,
        "learn_logits": 720,
        "backward_work": 240,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_critic_of_its_own_has_weights_and_an_untied_head_has_too():
    plan, more = plan_memory(HAND), plan_memory(replace(HAND, separate_critic=True))
    assert more.weights == 2 * plan.weights
    assert more.reference == plan.reference
    assert more.gradients == plan.gradients + 1200
    assert more.score_pass == plan.score_pass + 15 * 4 * 4  # beside the hidden states of the policy
    assert more.rollout_work == plan.rollout_work  # sampling asks for no value
    assert replace(HAND, tied=False).backbone_parameters == 340


def test_recomputation_keeps_the_states_between_blocks_and_one_block():
    plan = plan_memory(replace(HAND, recompute=True))
    assert plan.activations == 10 * (2 * 16 + 76) + 96
    assert plan.backward_work == 800 + 10 * 288
    assert plan.learn == plan.always + plan.gradients + plan.activations + plan.backward_work


def test_logits_of_a_real_vocabulary_come_in_chunks():
    """2^24 / 49,152 = 341 tokens with gradients, 21 or ROWS_READ without; two gradients of the LM head kept."""
    plan = plan_memory(replace(HAND, vocab_size=49152, micro_rows=8, rows=64, new_tokens=64, read_rows=1))
    assert plan.learn_logits == 3 * 4 * 341 * 49152 + 2 * 49152 * 4 * 4
    assert plan.score_logits == 4 * 4 * 21 * 49152 + 64 * 66 * 16
    few = replace(HAND, vocab_size=49152, rows=64, new_tokens=64)
    assert plan_memory(few).score_logits == 4 * 4 * 128 * 49152 + 64 * 66 * 16
    full = plan_memory(replace(HAND, vocab_size=49152, micro_rows=8, new_tokens=64, full_kl=True))
    assert full.score_logits == 7 * 4 * 8 * 64 * 49152


def test_packed_projections_by_hand():
    """Two blocks of 120 weights in matrices; 4.5 bits each are 135 bytes, and the other 60 take 2 bytes each."""
    packed = replace(HAND, weight_bytes=2, lora_rank=2, packed_bits=4.5)
    assert packed.backbone_bytes == 135 + 2 * (300 - 240)
    assert plan_memory(packed).weights == 255


def test_the_process_is_measured_and_not_a_constant():
    before = process_bytes()
    kept = torch.ones(32 << 20)  # 128 MiB: malloc maps it anew, where a smaller one may find a place that was free
    # An eighth less, if pages of others were given back meanwhile, to a quarter more, if torch took some for itself.
    assert 112 << 20 < process_bytes() - before < 160 << 20
    assert kept.sum() > 0


@pytest.mark.slow
def test_a_process_with_torch_is_a_hundred_megabytes_and_more():
    code = "import torch; from minirlhf.models.memory import process_bytes; print(process_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 50e6 < int(done.stdout) < 2e9


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_without_proc_the_largest_size_so_far_is_taken(monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "statm" and exists(path))
    assert process_bytes() >= 50e6  # torch alone is a hundred and more (the test above)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert process_bytes() == 0


# ---- a model of these sizes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A way to train: dtype of the backbone, projections with adapters (none = all weights learn), options."""

    dtype: torch.dtype = torch.float32
    targets: tuple[str, ...] = ()
    autocast: bool = False
    recompute: bool = False
    critic: bool = False


RANK = 4
KINDS = {
    "full": Kind(),
    "full with a critic": Kind(critic=True),
    "full in bfloat16": Kind(autocast=True),
    "full, recomputed": Kind(recompute=True),
    "adapters": Kind(targets=PROJECTIONS),
    "adapters on q and v": Kind(targets=("q_proj", "v_proj")),
    "adapters in bfloat16": Kind(targets=PROJECTIONS, autocast=True),
    "adapters with a critic": Kind(targets=PROJECTIONS, critic=True),
    "adapters beside bfloat16": Kind(torch.bfloat16, PROJECTIONS),
    "q and v beside bfloat16": Kind(torch.bfloat16, ("q_proj", "v_proj")),
}
SIZES = MemorySizes(
    vocab_size=1000, hidden_size=64, intermediate_size=176, layers=6, heads=4, kv_heads=2, head_dim=16,
    rows=8, prompt_tokens=24, new_tokens=40, micro_rows=8, chunk_logits=1 << 16, chunk_read=1 << 14,
    read_rows=getattr(policy_module, "ROWS_READ", 1),
)  # fmt: skip


def sizes_of(kind):
    return replace(
        SIZES,
        weight_bytes=kind.dtype.itemsize,
        lora_rank=RANK if kind.targets else 0,
        lora_targets=kind.targets or PROJECTIONS,
        separate_critic=kind.critic,
        autocast=kind.autocast,
        recompute=kind.recompute,
    )


def policy_of(kind):
    """A random policy of SIZES that is trained in this way."""
    config = replace(
        CONFIG, vocab_size=1000, hidden_size=64, intermediate_size=176, num_hidden_layers=6,
        max_position_embeddings=256,
    )  # fmt: skip
    trunk = Transformer(config).initialise(seeded())
    if kind.recompute and not hasattr(trunk, "recompute"):
        pytest.skip("this decoder recomputes nothing")
    trunk.in_bfloat16, trunk.recompute = kind.autocast, kind.recompute
    if kind.targets:
        lora = pytest.importorskip("minirlhf.models.lora")
        adapter = lora.Adapter(config, RANK, 4.0, kind.targets).initialise(seeded())
        trunk = lora.Adapted(trunk.requires_grad_(False).to(kind.dtype), adapter)
    sampler = replace(small_policy().sampler, banned=(0, 1, 2))  # the stop is never sampled: no row ends early
    return Policy(trunk, sampler, separate_critic=kind.critic)


def full_rollout():
    """8 rows, every prompt and every response at its full length."""
    b, p, r = SIZES.rows, SIZES.prompt_tokens, SIZES.new_tokens
    true = torch.ones(b, p + r, dtype=torch.bool)
    ids = torch.randint(3, 1000, (b, p + r), generator=seeded())
    mask = true[:, p:]
    rollout = Rollout(
        ids[:, :p], true[:, :p], ids[:, p:], mask, mask, true[:, 0], torch.arange(b), ("",) * b, ("",) * b, {}
    )
    assert len(rollout.tokens.ids) == b * (p + r)  # made once, before anything is measured
    return rollout


def learn(policy, rollout):
    out = policy.forward_pass(rollout)
    (out.logprobs.sum() + out.values.sum()).backward()


def score(policy, rollout):
    active, reference = policy.forward_pass(rollout), policy.forward_pass(rollout)
    active.entropy()
    return active, reference


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].recompute])
def test_autograd_saves_what_is_calculated(name):
    """Within a tenth, on the tensors saved in a forward pass: of each storage once, weights left out."""
    policy, rollout, sizes, kept = policy_of(KINDS[name]), full_rollout(), sizes_of(KINDS[name]), {}
    assert sum(p.numel() for p in policy.parameters()) == sizes.trained_parameters
    trunks = [policy.model, *([policy.critic] if KINDS[name].critic else [])]
    modules = [policy, *(getattr(trunk, "backbone", trunk) for trunk in trunks)]
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = policy.forward_pass(rollout)
    assert out.logprobs.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)
    log_dist = 4 * SIZES.rows * SIZES.new_tokens * SIZES.vocab_size  # kept, since all of it fits in one chunk
    assert found == pytest.approx(activation_bytes(sizes) + log_dist, rel=0.1)


def allocated(function):
    """Most bytes that torch's CPU allocator had handed out at a time while the function ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        largest = max(largest, now)
    return largest


FAST = ("full, recomputed", "adapters")  # the others take a second each


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_the_allocator_hands_out_what_is_calculated(name, monkeypatch):
    """Peaks of the three stages, beside what is there all the time: within 10 %."""
    monkeypatch.setattr(policy_module, "CHUNK_LOGITS", SIZES.chunk_logits)
    monkeypatch.setattr(policy_module, "CHUNK_READ", SIZES.chunk_read)
    policy, rollout, sizes = policy_of(KINDS[name]), full_rollout(), sizes_of(KINDS[name])
    plan = plan_memory(sizes)
    learn(policy, rollout)  # the gradients of an earlier micro-batch are there
    expected = plan.activations + max(plan.learn_logits, plan.backward_work)
    assert allocated(lambda: learn(policy, rollout)) == pytest.approx(expected, rel=0.1)

    with torch.no_grad():
        outputs = list(score(policy, rollout))  # adapters beside bfloat16 have their copies now
        outputs.clear()
        found = allocated(lambda: outputs.extend(score(policy, rollout)))
    assert found == pytest.approx(plan.states + max(plan.score_pass, plan.score_logits), rel=0.1)

    prompts = PromptBatch(rollout.prompt_ids, rollout.prompt_mask, rollout.group, rollout.prompts, {})
    tokenizer, length = Letters(), SIZES.new_tokens
    tokenizer.decode = lambda ids: ""
    found = allocated(lambda: generate(policy, prompts, tokenizer, max_new_tokens=length, generator=seeded()))
    assert found == pytest.approx(plan.cache / 1.8 + plan.rollout_work, rel=0.1)  # no row stops: no copy


def test_whole_distributions_take_what_is_calculated():
    policy, rollout = policy_of(KINDS["full"]), full_rollout()
    with torch.no_grad():
        out = policy.forward_pass(rollout)
        out.log_dist(slice(0, 1))
        found = allocated(lambda: exact(out.log_dist(slice(None)), out.log_dist(slice(None))))
    assert found == pytest.approx(distribution_bytes(replace(SIZES, full_kl=True)), rel=0.1)


def test_a_chunk_is_no_larger_than_there_are_tokens_and_never_empty():
    assert learning_bytes(SIZES, 7) == 3 * 4 * 7 * 1000
    assert reading_bytes(SIZES, 7) == 4 * 4 * 7 * 1000
    small = replace(SIZES, chunk_logits=10, chunk_read=10, read_rows=0)
    assert (learning_bytes(small, 7), reading_bytes(small, 7)) == (12 * 1000, 16 * 1000)
    assert reading_bytes(replace(small, read_rows=3), 7) == 16 * 1000  # no more than with gradients
