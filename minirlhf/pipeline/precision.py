"""Number format of the PPO stage: float32, or bfloat16 for the products of weights that stay float32.

A frozen backbone in bfloat16 (`model.dtype`) is used as it is. Not here: the guard against too much rounding
(rl/guards.py)."""

from collections.abc import Iterator
from contextlib import contextmanager

from minirlhf.models.lora import Adapted
from minirlhf.models.transformer import Transformer
from minirlhf.ppo import PPOState


@contextmanager
def precision(name: str, state: PPOState) -> Iterator[None]:
    """Run policy, critic and reference in this `ppo.precision`; back in float32 afterwards, for evaluation and disk."""
    whole = not isinstance(state.policy.model, Adapted)  # a frozen backbone has its dtype, and is used as it is
    models = [*state.policy.modules(), *state.reference.policy.modules()] if whole else []
    trunks = [module for module in models if isinstance(module, Transformer)]
    try:
        for trunk in trunks:
            trunk.in_bfloat16 = name == "bfloat16"
        yield
    finally:
        for trunk in trunks:
            trunk.in_bfloat16 = False
