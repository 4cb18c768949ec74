"""A decoding step of fixed shapes is the step of growing ones, waits for nothing, and its prompts are read once."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.models import transformer as transformer_module
from minirlhf.models.attention import KVCache, attention, causal, hidden_slots, weighted
from minirlhf.models.decoding import Decoding
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.packing import Packing
from tests.helpers import CONFIG, Letters, seeded, small_policy, small_trunk
from tests.models.test_generate import TEXTS, prompts

# What waits for a device: it reads a value, or its result has a shape that only values decide.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "item", "is_nonzero", "equal"}


class Calls(TorchDispatchMode):
    """Names and output shapes of the operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else ()
        self.made.append((func.overloadpacket.__name__, shape))
        return out


def begun(policy, new, *, fixed, texts=TEXTS):
    """Decoding after the first token of each row."""
    batch = prompts(texts)
    b, p = batch.ids.shape
    cache = KVCache(policy.model.config, b, p + new, policy.model.embed_tokens.weight)
    hidden = policy.model(batch.ids, batch.mask, cache)[:, -1:]
    decoding = Decoding(policy, policy.sampler, cache, torch.rand(b, new, generator=seeded()), 0)
    cache.reading = p + new if fixed else None
    decoding.choose(hidden)
    return decoding


@torch.no_grad()
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_step_of_fixed_shapes_samples_the_same_tokens(double, bfloat16):
    """By products of matrices, and by SDPA with a mask, which reads the empty slots as well."""
    found = []
    for fixed in (False, True):
        policy = small_policy(temperature=1.3)
        policy.model.in_bfloat16 = bfloat16
        decoding = begun(policy, 12, fixed=fixed)
        for step in range(11):
            decoding.step()
            if step == 5:
                decoding.shrink()
        found.append(decoding.finish())
    assert torch.equal(*found)
    assert len(set(found[0].flatten().tolist())) > 5


@torch.no_grad()
def test_shapes_stay_the_same_from_step_to_step_where_they_are_fixed(double):
    shapes = {}
    for fixed in (False, True):
        decoding = begun(small_policy(), 12, fixed=fixed)
        for _ in range(2):
            with Calls() as calls:
                decoding.step()
            shapes.setdefault(fixed, []).append(calls.made)
    assert shapes[True][0] == shapes[True][1]
    assert shapes[False][0] != shapes[False][1]


@torch.no_grad()
def test_a_step_stays_in_its_place(double):
    """A graph reads and writes the tensors that were there when it was captured."""
    decoding = begun(small_policy(), 12, fixed=True)
    cache = decoding.cache

    def places():
        state = [decoding.token, decoding.alive, decoding.at, decoding.chosen, decoding.uniform]
        state += [cache.keys, cache.values, cache.seen, cache.count, cache.slot, cache.cos, cache.sin]
        return [x.data_ptr() for x in state]

    before = places()
    for _ in range(3):
        decoding.step()
    assert places() == before


@torch.no_grad()
def test_a_step_waits_for_nothing():
    decoding = begun(small_policy(), 12, fixed=True)
    with Calls() as calls:
        decoding.step()
    names = {name for name, _ in calls.made}
    assert {"mm", "bmm", "searchsorted"} <= names
    assert not names & WAITS
    with Calls() as calls:
        decoding.shrink()
    assert [name for name, _ in calls.made if name in WAITS] == ["_local_scalar_dense"]


def test_an_update_reads_no_value_in_the_model():
    """Tensors without values raise where one is read, or where it would decide a shape."""
    policy, packing = small_policy(), Packing.of((5, 3, 9))  # from lengths, which are known on the CPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.randint(3, 13, (17,))
        policy.logits(policy.model.packed(ids, packing)).logsumexp(dim=-1).sum().backward()
        with pytest.raises(Exception, match="nonzero"):
            ids[ids > 4].tolist()


class Graph:
    """Stand-in for a CUDA graph: what is captured is not run until it is replayed."""

    def __init__(self, log):
        self.log = log

    def replay(self):
        self.log.append("replay")
        self.step()


@torch.no_grad()
def test_a_graph_is_captured_after_a_step_without_one_and_again_for_fewer_rows(double, monkeypatch):
    log = []
    decoding = begun(small_policy(), 30, fixed=True, texts=TEXTS * 2)
    decoding.captures, run = True, decoding._step
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(log))

    class Capture:
        def __init__(self, graph):
            self.graph = graph

        def __enter__(self):
            log.append("capture")
            self.graph.step = run
            decoding._step = lambda: None

        def __exit__(self, *error):
            decoding._step = run

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    for _ in range(4):
        decoding.step()
    assert log == ["capture", "replay", "replay", "replay"]
    assert int(decoding.at) == 5
    log.clear()
    decoding.alive[[0, 2, 3, 5, 6]] = False  # 3 of 8 go on: 4 are kept, by halves
    assert decoding.shrink()
    assert decoding.rows.tolist()[:3] == [1, 4, 7]
    assert len(decoding.rows) == 4
    for _ in range(3):
        decoding.step()
    assert log == ["capture", "replay", "replay"]
    decoding.alive[:] = False
    assert not decoding.shrink()


@torch.no_grad()
def test_eight_responses_to_a_prompt_of_32_tokens_read_it_once(double, monkeypatch):
    """Counted in rows of products before the first step: an eighth. The responses are those of rows of their own."""
    text, policy = "abcdefghij" * 3 + "a", small_policy()
    rows, linear = [], F.linear

    def counted(x, *rest):
        rows.append(x.shape[:-1].numel())
        return linear(x, *rest)

    found, most = {}, {}
    for repeats in (1, 8):
        texts = [text, text[::-1]] if repeats == 8 else [text] * 8 + [text[::-1]] * 8
        batch = PromptBatch.build(texts, [{} for _ in texts], Letters(), responses=repeats)
        assert batch.ids.shape == (16, 32)
        monkeypatch.setattr(F, "linear", counted)
        generate(policy, batch, Letters(), max_new_tokens=1, generator=seeded())
        monkeypatch.undo()
        most[repeats] = sum(n for n in rows if n != 16)  # the LM head reads a state of each row in both
        rows.clear()
        found[repeats] = generate(policy, batch, Letters(), max_new_tokens=20, generator=seeded())
    assert most[1] == 8 * most[8] > 0
    assert found[1].completion_id_lists == found[8].completion_id_lists
    assert len(set(map(tuple, found[8].completion_id_lists))) > 8


def test_parts_of_a_batch_know_how_often_a_prompt_stands_in_them():
    batch = PromptBatch.build(["abc", "de", "f"], [{}] * 3, Letters(), responses=4)
    assert [part.repeats for part in batch.parts(8)] == [4, 4]
    assert [part.repeats for part in batch.parts(6)] == [1, 1]
    assert [len(part.texts) for part in batch.parts(8)] == [8, 4]


@pytest.mark.parametrize("heads", [4, 2, 1])
# Sums of five products of numbers near 1: rounding is some 1e-15 in float64, 1e-7 in float32.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_attention_by_products_is_that_of_torch(heads, dtype, bound):
    """With a mask for each row and without, H query heads on fewer key heads, gradients included."""
    q = torch.randn(3, 4, 5, 6, generator=seeded(1), dtype=dtype, requires_grad=True)
    k, v = (torch.randn(3, heads, 5, 6, generator=seeded(i), dtype=dtype, requires_grad=True) for i in (2, 3))
    config = type(CONFIG)(13, 24, 8, 1, 4, heads, 16)
    own = torch.rand(3, 1, 5, 5, generator=seeded(4)) < 0.5
    own |= torch.eye(5, dtype=torch.bool)
    weights = torch.randn(3, 5, 4, 6, generator=seeded(5), dtype=dtype)
    for visible in (causal(5, q.device), own):
        found = []
        for way in (
            lambda: weighted(q, k, v, hidden_slots(visible, config, dtype)),  # noqa: B023
            lambda: attention(q, k, v, visible),  # noqa: B023
        ):
            out = way()
            found.append([out, *torch.autograd.grad((out * weights).sum(), (q, k, v))])
        for ours, theirs in zip(*found, strict=True):
            assert (ours - theirs).abs().max() < bound * max(1.0, float(theirs.detach().abs().max()))


def test_large_batches_of_long_texts_leave_their_weights_to_torch(monkeypatch):
    """Products hold the weights of all pairs of tokens: 4 heads x 5 x 5 for a row."""
    called = []
    monkeypatch.setattr(transformer_module, "attention", lambda *x: called.append(x[0].shape[0]) or attention(*x))
    trunk = small_trunk()
    ids = torch.randint(3, 13, (15,), generator=seeded())
    plain = trunk.packed(ids, Packing.of([5, 5, 5]))
    assert not called
    monkeypatch.setattr("minirlhf.models.attention.PAIRS", 3 * 4 * 25 - 1)
    assert (trunk.packed(ids, Packing.of([5, 5, 5])) - plain).abs().max() < 1e-5  # two blocks in float32
    assert called == [3] * CONFIG.num_hidden_layers
