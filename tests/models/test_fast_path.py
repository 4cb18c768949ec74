"""The fast path (tokens packed, heads in chunks) is the plain one, compiles whole, and stays on its device.

The other device is `meta`: its tensors have shapes and sizes but no numbers, mixing it with the CPU raises, and so does
reading a value. It shows where tensors go and what they take, at any size, on any machine.
"""

import weakref
from dataclasses import fields, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minirlhf.models import packing
from minirlhf.models import policy as policy_module
from minirlhf.models.attention import KVCache
from minirlhf.models.packing import Packing
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer
from minirlhf.stages.pretrain import token_losses
from tests.helpers import BOS, CONFIG, EOS, PAD, random_rollout, seeded, small_policy, small_trunk

SHAPES = [(1, 1, 1), (1, 4, 6), (2, 1, 9), (3, 7, 1), (4, 2, 2), (5, 4, 6), (9, 3, 12)]  # rows, prompt, response


def plainly(policy: Policy, rollout) -> torch.Tensor:
    """log pi of every response token (B,R) by a padded forward pass over prompt and response."""
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], dim=1)
    hidden = policy.model(ids, torch.cat([rollout.prompt_mask, rollout.response_mask], dim=1))
    states = hidden[:, rollout.prompt_ids.shape[1] - 1 : -1]
    dist = policy.sampler.log_dist(states @ policy.model.embed_tokens.weight.T)
    return dist.gather(2, rollout.response_ids.unsqueeze(2)).squeeze(2).where(rollout.mask, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("wide", [96, 3])
def test_packed_scores_and_gradients_are_those_of_a_padded_forward_pass(shape, dtype, bound, wide, monkeypatch):
    """Compared relative to the largest number if that is above 1; texts in one grid and in several."""
    monkeypatch.setattr(packing, "WIDE", wide)
    rollout = random_rollout(*shape, seed=len(str(dtype)))
    weights = torch.randn(rollout.mask.shape, generator=seeded(7), dtype=dtype)
    found = []
    for score in (lambda policy: policy.forward_pass(rollout).logprobs, lambda policy: plainly(policy, rollout)):
        policy = small_policy().to(dtype)
        logprobs = score(policy)
        assert logprobs.dtype == dtype
        (logprobs * weights).sum().backward()
        found.append((logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.model.parameters()])))
    for fast, plain in zip(*found, strict=True):
        assert (fast - plain).abs().max() <= bound * max(1.0, plain.abs().max().item())


def test_scoring_and_decoding_compile_without_a_graph_break():
    """fullgraph raises at the first graph break. Nothing is compiled: it was faster nowhere (docs/performance.md)."""
    trunk, lengths = small_trunk(), (3, 5)
    ids, packing = torch.randint(3, 13, (8,), generator=seeded()), Packing.of(lengths)
    whole = torch.compile(trunk.packed, fullgraph=True, backend="eager")
    assert torch.equal(whole(ids, packing), trunk.packed(ids, packing))

    def decode(run):
        cache = KVCache(trunk.config, 2, 5, trunk.embed_tokens.weight)
        trunk(ids.view(2, 4), torch.ones(2, 4, dtype=torch.bool), cache)
        return run(ids[:2].view(2, 1), None, cache)

    assert torch.equal(decode(torch.compile(trunk, fullgraph=True, backend="eager")), decode(trunk))


# ---- on another device ------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """Bytes of the tensors made within, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key, size):
        self.alive.discard(key)
        self.now -= size


def elsewhere(vocab=13, rows=5, p=4, r=6):
    """Make a policy and a rollout on the device meta."""
    rollout = random_rollout(rows, p, r, vocab=vocab)
    tensors = {f.name: x.to("meta") for f in fields(rollout) if isinstance(x := getattr(rollout, f.name), torch.Tensor)}
    policy = Policy(Transformer(replace(CONFIG, vocab_size=vocab)), Sampler(1.0, banned=(PAD, BOS), stops=(EOS,)))
    return policy.to("meta"), replace(rollout, **tensors)


def test_the_memory_of_tensors_by_hand():
    with Memory() as memory:
        a = torch.zeros(1000, device="meta")
        b = (a + 1).view(10, 100)
        assert memory.now == 8000
        del a
        c = b * 2  # noqa: F841
    assert (memory.now, memory.peak) == (8000, 8000)


def test_scoring_and_learning_stay_on_their_device():
    policy, rollout = elsewhere()
    out = policy.forward_pass(rollout)
    found = [out.logprobs, out.values, out.next_value, out.entropy(), out.log_dist(slice(0, 2))]
    sum(x.sum() for x in found[:4]).backward()
    nats, _ = token_losses(policy.model, [[1, 3, 4], [1, 5]], [2, 1])
    found += [nats, *(p.grad for p in policy.parameters())]
    assert {x.device.type for x in found} == {"meta"}
    with pytest.raises(RuntimeError, match=r"[Mm]eta"):
        torch.zeros(1, 2) + policy.forward_pass(rollout).values[:1, :2]


@pytest.mark.parametrize("gradients", [False, True])
def test_the_logits_of_a_batch_never_exist_at_once(gradients, monkeypatch):
    """A vocabulary of 49,152 and 64 responses of up to 96 tokens: their logits would take more than half a GiB."""
    policy, rollout = elsewhere(49152, 64, 16, 96)
    whole = len(rollout.tokens.response_ids) * 49152 * 4
    assert whole > 2**29

    def peak():
        with Memory() as memory, torch.set_grad_enabled(gradients):
            out = policy.forward_pass(rollout)
            if gradients:
                (out.logprobs.sum() + out.entropy().sum() + out.values.sum()).backward()
            return memory.peak

    chunk = policy_module.CHUNK_LOGITS * 4
    weights = sum(p.numel() * 4 for p in policy.parameters())
    assert (
        peak() < 6 * chunk + 2 * weights
    )  # logits, log-probabilities, their gradients: a few chunks, and small things
    policy.zero_grad()
    for name in ("CHUNK_LOGITS", "CHUNK_READ"):
        monkeypatch.setattr(policy_module, name, 1 << 40)
    assert peak() > 2 * whole
