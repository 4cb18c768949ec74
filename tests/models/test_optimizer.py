"""torch.optim.AdamW is the reference: the same numbers to the bit. It imports no compiler: tests/test_layers.py."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.models.optimizer import AdamW, steps_too_small
from tests.helpers import seeded

SHAPES = [(3, 4), (5,), (2, 2, 2)]


def trained(kind, steps, **options):
    """Parameters after some steps of random gradients, under a schedule; the second one has no gradient at first."""
    g = seeded(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    groups = [{"params": parameters[:1], "weight_decay": 0.3}, {"params": parameters[1:], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-5, **options)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        for i, parameter in enumerate(parameters):
            if not (i == 1 and step == 0):
                parameter.grad = torch.randn(parameter.shape, generator=g)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in parameters)
    return parameters, [optimizer.state[p] for p in parameters]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_it_is_torchs_adamw_to_the_bit(steps):
    ours, state = trained(AdamW, steps)
    theirs, expected = trained(torch.optim.AdamW, steps, fused=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [set(s) for s in state] == [set(s) for s in expected]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(state, expected, strict=True) for k in a)


def test_the_first_step_by_hand():
    """m_hat / sqrt(v_hat) = sign(g) at the first step, after the decay."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.tensor([0.5, 3.0])
    AdamW([p], lr=0.1, eps=0.0, weight_decay=0.5).step()
    assert torch.allclose(p, torch.tensor([0.95 - 0.1, -1.9 - 0.1]))


def test_steps_that_no_weight_of_float32_feels():
    """A weight of 0.02 lies 1.86e-9 from the next float: 1e-9 moves it, 0.9e-9 does not."""
    weight = torch.tensor(0.02)
    assert (weight + 1e-9 > weight, weight + 0.9e-9 > weight) == (True, False)
    assert steps_too_small("sft", 1e-9, 1.0) == []
    assert steps_too_small("sft", 1e-3, 1e-13) == []  # 1e-3 x 1e-13 / 1e-8 = 1e-8
    (text,) = steps_too_small("sft", 0.9e-9, 1.0)
    assert text.startswith("sft.lr = 9e-10 is so small")
    (text,) = steps_too_small("ppo", 1e-3, 1e-12, 1e-5)  # 1e-3 x 1e-12 / 1e-5 = 1e-10
    assert text.startswith("ppo.grad_clip = 1e-12 is so far below Adam's epsilon, 1e-05")
