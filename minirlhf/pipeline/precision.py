"""Number format of the PPO stage: float32, or bfloat16 once its error against float32 is known to be small."""

from collections.abc import Iterator
from contextlib import contextmanager

from minirlhf.config.schema import Config
from minirlhf.errors import UsageError
from minirlhf.models.generate import generate
from minirlhf.models.transformer import Transformer
from minirlhf.ppo import Parts, PPOState
from minirlhf.streams import generator

PROBE_RESPONSES = 16  # responses whose log-probs are compared with float32's
MOST_PRECISION_ERROR = 0.1  # nats: beyond it, the ratios that a clip of 0.2 cuts are mostly rounding


@contextmanager
def precision(name: str, state: PPOState) -> Iterator[None]:
    """Run policy, critic and reference in this `ppo.precision`; back in float32 afterwards, for evaluation and disk."""
    models = [*state.policy.modules(), *state.reference.policy.modules()]
    trunks = [module for module in models if isinstance(module, Transformer)]
    try:
        for trunk in trunks:
            trunk.in_bfloat16 = name == "bfloat16"
        yield
    finally:
        for trunk in trunks:
            trunk.in_bfloat16 = False


def precision_error(config: Config, state: PPOState, parts: Parts) -> float:
    """Largest |log-prob in this precision - log-prob in float32|, in nats; 0 for float32.

    Measured inside `precision`, with the reference, on its responses to the first prompts. UsageError where it is too
    large to learn from.
    """
    if config.ppo.precision == "float32":
        return 0.0
    model = state.reference.policy
    rollout = generate(
        model, next(parts.prompts(0).parts(PROBE_RESPONSES)), parts.tokenizer,
        max_new_tokens=config.sampler.max_new_tokens, generator=generator(config.run.seed, "precision", 0),
    )  # fmt: skip
    lower = state.reference.forward_pass(rollout).logprobs
    model.model.in_bfloat16 = False
    error = float((lower - state.reference.forward_pass(rollout).logprobs).abs().max())
    model.model.in_bfloat16 = True
    if not error <= MOST_PRECISION_ERROR:  # NaN is refused, too
        raise UsageError(
            f"{config.ppo.precision} moves log-probs by {error:.2g} nats",
            "ppo.precision",
            "use float32 with this model",
        )
    return error
