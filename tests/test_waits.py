"""What waits for a device: counted on tensors that stand for those of one.

`Far` tensors compute as any other; but whoever reads a value of one (item, tolist, a truth value, nonzero, an index of
bools) would wait for a GPU to finish all that it was given, and is counted.
"""

from collections import Counter
from dataclasses import fields, replace
from typing import ClassVar

import pytest
import torch

from minirlhf.models import generate as generate_module
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.optimizer import AdamW
from minirlhf.models.sampler import Sampler
from minirlhf.ppo import update
from tests.helpers import Letters, random_rollout, seeded, small_policy
from tests.test_ppo import experience_on, parts, settings, state_of

READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "cpu", "numpy"}
READS |= {"unique", "equal", "allclose"}


class Far(torch.Tensor):
    """A tensor of a device, as far as waiting goes."""

    waits: ClassVar = Counter()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        chosen = args[1] if name in ("__getitem__", "__setitem__") else None
        by_bools = isinstance(chosen, torch.Tensor) and chosen.dtype == torch.bool
        if name in READS or by_bools:
            cls.waits[name] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def nothing_counted():
    Far.waits.clear()


def far(tensor):
    return tensor.as_subclass(Far)


def far_policy():
    policy = small_policy()
    for module in policy.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(far(parameter.detach())))
    return policy


def test_reading_a_value_is_counted_and_computing_is_not():
    x = far(torch.ones(3))
    y = (x + 1).cumsum(0).where(x > 0, 0.0)
    assert isinstance(y, Far)
    assert not Far.waits
    y.tolist(), y[0].item(), bool(y.any()), y[y > 2], y.nonzero()
    assert Far.waits == Counter(tolist=1, item=1, __bool__=1, __getitem__=1, nonzero=1)


@pytest.mark.parametrize("new", [8, 24, 40])
def test_decoding_waits_once_a_chunk_of_steps(new):
    """For the early exit alone."""
    policy = far_policy()
    batch = PromptBatch.build(["abc", "j"], [{}, {}], Letters())
    prompts = PromptBatch(far(batch.ids), far(batch.mask), batch.group, batch.texts, {})
    never = Sampler(1.0, (0, 1, 2), (2,))  # no EOS, so that every step is taken
    rollout = generate(policy, prompts, Letters(), max_new_tokens=new, generator=seeded(), sampler=never)
    assert rollout.response_ids.shape[1] == new
    in_the_end = Counter(tolist=1)  # how many tokens each prompt has
    assert Far.waits == Counter(__int__=(new - 1) // generate_module.LOOK_EVERY) + in_the_end


def test_an_update_waits_once_whatever_its_size():
    """Loss, gradient norm and metrics are read together, before the optimiser's step."""
    policy, plain = far_policy(), random_rollout(6)
    rollout = replace(
        plain, **{f.name: far(x) for f in fields(plain) if isinstance(x := getattr(plain, f.name), torch.Tensor)}
    )
    with torch.no_grad():
        experience = experience_on(rollout, policy)
    optimizer = AdamW(policy.parameters(), lr=1e-3)
    state = state_of(policy, None, optimizer)
    for size in (6, 3):
        Far.waits.clear()
        update(state, experience, parts(), settings(micro=size), 0.1)
        assert Far.waits == Counter(tolist=1)
