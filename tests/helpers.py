"""Small things with known properties, used by several tests."""

from dataclasses import replace
from datetime import datetime

import torch

from minirlhf.components.component import Built
from minirlhf.components.signature import read_component
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.rewards.shape import ShapedScores
from minirlhf.rl.experience import Experience
from minirlhf.tensors import Moments

PAD, BOS, EOS = 0, 1, 2
CONFIG = TransformerConfig(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_trunk(seed: int = 0, config: TransformerConfig = CONFIG, scale: float = 0.3) -> Transformer:
    """A transformer with weights large enough that its distributions are far from uniform; 0.02: near uniform.

    Its own numbers, not `initialise`: what training starts from may change, and these tests should not with it.
    """
    trunk = Transformer(config).to(torch.get_default_dtype())
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return trunk


def small_policy(seed: int = 0, temperature: float = 1.0, **options) -> Policy:
    policy = Policy(small_trunk(seed), Sampler(temperature, banned=(PAD, BOS), stops=(EOS,)), **options)
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(seed + 1))
    return policy


class OneSecond:
    """A datetime whose clock stands still: whatever is named by the time is named alike."""

    @staticmethod
    def now():
        return datetime(2026, 1, 2, 3, 4, 5)


class Letters:
    """A tokenizer of ten letters: id = letter + 3."""

    pad_id, bos_id, eos_id, vocab_size, hash = PAD, BOS, EOS, 13, "letters"
    start, stops = (BOS,), (EOS,)
    special = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}  # noqa: RUF012

    def encode(self, text):
        return [ord(c) - ord("a") + 3 for c in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def prompt_ids(self, prompts, spoken=(), where=()):
        return [[BOS, *self.encode(text)] for text in prompts]

    def text_ids(self, prompt, completion, ended, spoken=None):
        return [BOS, *self.encode(prompt + completion), *([EOS] if ended else [])]

    def decode(self, ids):
        return "".join(chr(i - 3 + ord("a")) for i in ids if i >= 3)


def random_rollout(rows: int = 5, p: int = 4, r: int = 6, seed: int = 0, vocab: int = 13) -> Rollout:
    """Ragged prompts and responses of random letters, at least one token each; the last row is full length."""
    g = seeded(seed)
    prompt_lengths = torch.randint(1, p + 1, (rows,), generator=g)
    lengths = torch.randint(1, r + 1, (rows,), generator=g)
    prompt_lengths[-1], lengths[-1] = p, r
    prompt_mask = torch.arange(p).flip(0) < prompt_lengths.unsqueeze(1)
    mask = torch.arange(r) < lengths.unsqueeze(1)
    prompt_ids = torch.randint(3, vocab, (rows, p), generator=g).where(prompt_mask, PAD)
    ids = torch.randint(3, vocab, (rows, r), generator=g).where(mask, PAD)
    terminated = torch.rand(rows, generator=g) < 0.5
    for row in range(rows):
        if terminated[row]:
            ids[row, lengths[row] - 1] = EOS
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=ids,
        response_mask=mask,
        mask=mask.clone(),
        terminated=terminated,
        group=torch.arange(rows),
        prompts=tuple(f"p{i}" for i in range(rows)),
        completions=tuple(f"c{i}" for i in range(rows)),
        columns={},
    )


def padded(rollout: Rollout, left: int, right: int) -> Rollout:
    """The same rollout with `left` more prompt slots and `right` more response slots of junk padding."""
    rows = len(rollout)

    def widen(x, value):
        before = x.new_full((rows, left), value) if x is rollout.prompt_ids or x is rollout.prompt_mask else None
        after = x.new_full((rows, right), value)
        return torch.cat([before, x], dim=1) if before is not None else torch.cat([x, after], dim=1)

    return replace(
        rollout,
        prompt_ids=widen(rollout.prompt_ids, 7),
        prompt_mask=widen(rollout.prompt_mask, False),
        response_ids=widen(rollout.response_ids, 5),
        response_mask=widen(rollout.response_mask, False),
        mask=widen(rollout.mask, False),
    )


def built(kind: str, function, **options) -> Built:
    """A function as a component, its parameters bound by name, as the registry would build it."""
    name = getattr(function, "__name__", "component")
    return read_component(kind, name, "tests", __file__, function).build(options)


def shaped_as(e: Experience, bootstrap: torch.Tensor | None = None) -> ShapedScores:
    """Shaped scores that an experience may have been built from; bootstrap (B,) stands behind cut responses."""
    behind = torch.zeros_like(e.scores) if bootstrap is None else bootstrap
    return ShapedScores(e.scores, e.rollout, torch.zeros_like(e.rewards), behind, Moments(0.0, 0.0, 0), e.slot_returns)


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradient of every step, flat; lr 0 = it only looks."""

    def __init__(self, parameters, lr: float = 0.0) -> None:
        super().__init__(parameters, lr=lr)
        self.gradients: list[torch.Tensor] = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.gradients.append(
            torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]).clone()
        )
        return super().step(closure)


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All weights of a module in one copied vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
