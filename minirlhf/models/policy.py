"""Policy: one trunk with two heads (N18: an LM head of size V, a value head of size 1). Reference: a frozen policy.

`forward_pass` turns a rollout into per-token log-probabilities and values, in chunks of tokens. Logits of the whole
batch never exist, because at a vocabulary of 49,152 they would be larger than everything else together. Only hidden
states are kept; entropies and full distributions are computed from them on request (`PolicyOutput`).

The value head starts at 0, so that the first values are 0 and not noise. It gives V in units of `value_scale`, so that
the numbers it learns are near one whatever the unit of the reward; V itself is in the reward's unit. With
`separate_critic` the values come from a second trunk (a copy of the base at the start), and the value loss then leaves
the policy's trunk alone. Not here: sampling (generate.py) and the distribution that a token is drawn from (sampler.py).
"""

import copy
import hashlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minirlhf.models.lora import Trunk, backbone_of, head_options
from minirlhf.models.rollout import PolicyOutput, Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.tensors import gather_logprobs

CHUNK_LOGITS = 1 << 24  # most logits at a time while gradients are wanted: 64 MiB in float32
CHUNK_READ = 1 << 20  # most logits at a time otherwise: smaller, because nothing is recomputed and caches hold them
ROWS_READ = 128  # states at least in such a chunk: each reads the whole LM head, which is large where V is


class Policy(nn.Module):
    """A transformer with an LM head (tied) and a value head, read through one sampler.

    Parameters are named as Hugging Face's LlamaForCausalLM names them (`model.` + the trunk's); `value_head.` and
    `critic.` are ours.
    """

    def __init__(self, trunk: Trunk, sampler: Sampler, *, separate_critic: bool = False) -> None:
        super().__init__()
        self.model = trunk
        self.critic = copy.deepcopy(trunk) if separate_critic else None
        self.value_head = nn.Linear(trunk.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(**head_options(trunk))
        self.value_scale: Tensor
        self.register_buffer("value_scale", torch.ones((), **head_options(trunk)))
        self.sampler = sampler

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (...,W) -> logits (...,V)."""
        return self.model.logits(hidden)

    @torch.no_grad()
    def rescale_values(self, scale: float) -> None:
        """Give V in units of `scale` (above 0) from now on; what the head predicts, in score units, stays the same."""
        for parameter in self.value_head.parameters():
            parameter.mul_(self.value_scale / scale)
        self.value_scale.fill_(scale)

    @torch.no_grad()
    def shift_values(self, distance: float) -> None:
        """Add `distance` (score units) to V in every state."""
        self.value_head.bias.add_(distance / self.value_scale)

    def forward_pass(self, rollout: Rollout, *, with_entropy: bool = True) -> PolicyOutput:
        """Forward pass over prompt + response (B rows): log-prob and value of every response token.

        The state before response token t gives its distribution and value; the state after the last real token gives
        next_value. Only real tokens are computed (packed end to end, without padding). with_entropy: False where nobody
        will ask for it, which saves time.
        """
        tokens, (b, r) = rollout.tokens, rollout.response_ids.shape
        hidden = self.model.packed(tokens.ids, tokens.packing)  # (N,W)
        seen = hidden if self.critic is None else self.critic.packed(tokens.ids, tokens.packing)
        values = self.value_head(seen.to(self.value_scale.dtype)).squeeze(-1) * self.value_scale  # (N,)
        values = values if values.dtype == torch.float64 else values.float()
        states, ids = hidden[tokens.before], tokens.response_ids  # (n,W), (n,)

        def placed(values: Tensor) -> Tensor:
            """(n,...) -> (B,R,...), 0 at padding."""
            empty = values.new_zeros(b * r, *values.shape[1:])
            return empty.index_copy(0, tokens.places, values).view(b, r, *values.shape[1:])

        rows_of_states = cache(lambda: placed(states))
        if with_entropy and not torch.is_grad_enabled():  # one pass over the head for both
            logprobs, entropies = self._read(read_both, states, ids).unbind(dim=1)
        else:
            logprobs, entropies = self._read(gather_logprobs, states, ids), None
        return PolicyOutput(
            logprobs=placed(logprobs),
            values=placed(values[tokens.before]),
            next_value=values[tokens.packing.ends],
            entropy=lambda: placed(self._read(read_entropy, states, ids) if entropies is None else entropies),
            log_dist=lambda rows: self.sampler.log_dist(self.logits(rows_of_states()[rows])),
        )

    def _read(self, read: Callable[[Tensor, Tensor], Tensor], states: Tensor, ids: Tensor) -> Tensor:
        """Apply read(log_dist (m,V), ids (m,)) -> (m,...) to n states, a chunk of logits at a time: (n,...).

        With several chunks and gradients wanted, each chunk is recomputed in the backward pass: otherwise autograd
        would keep the logits of all of them, and nothing would be saved.
        """

        def one(states: Tensor, ids: Tensor) -> Tensor:
            return read(self.sampler.log_dist(self.logits(states)), ids)

        vocabulary = self.model.config.vocab_size
        size = max(1, CHUNK_LOGITS // vocabulary)
        if not torch.is_grad_enabled():
            size = min(size, max(ROWS_READ, CHUNK_READ // vocabulary))
        if size >= len(states):
            return one(states, ids)
        chunks = [(states[at : at + size], ids[at : at + size]) for at in range(0, len(states), size)]
        if not torch.is_grad_enabled():
            return torch.cat([one(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks])


def entropy(log_dist: Tensor) -> Tensor:
    """-sum_v p log p of distributions (...,V), nats."""
    # p log p -> 0 as p -> 0: a banned id has p = 0 and log p = -inf, and 0 * -inf would be NaN.
    finite = log_dist.masked_fill(log_dist.isneginf(), 0.0)
    return -(log_dist.exp() * finite).sum(dim=-1)


def read_entropy(log_dist: Tensor, ids: Tensor) -> Tensor:
    """Entropies (m,) of distributions (m,V); ids (m,) are those taken, on which they do not depend."""
    return entropy(log_dist)


def read_both(log_dist: Tensor, ids: Tensor) -> Tensor:
    """(log-prob of the id taken, entropy) of distributions (m,V) with ids (m,): (m,2) nats."""
    return torch.stack([gather_logprobs(log_dist, ids), entropy(log_dist)], dim=1)


def weights_hash(trunk: Trunk) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a trunk's weights; behind an adapter, the backbone's too."""
    digest = hashlib.sha256()
    for module in {trunk: None, backbone_of(trunk): None}:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Reference:
    """Frozen copy of the policy that KL is measured against; hash: `weights_hash` of it when it was frozen.

    shared: nobody trains the trunk of this policy, so that it is used as it is, without a copy.
    """

    def __init__(self, policy: Policy, *, shared: bool = False) -> None:
        # The trunk alone: a reference has no use for values.
        trunk = policy.model if shared else copy.deepcopy(policy.model)
        self.policy = Policy(trunk, policy.sampler).requires_grad_(False).eval()
        self.hash = weights_hash(self.policy.model)

    @torch.no_grad()
    def forward_pass(self, rollout: Rollout) -> PolicyOutput:
        """Forward pass of the frozen model on the same tokens."""
        return self.policy.forward_pass(rollout, with_entropy=False)

    def unchanged(self) -> bool:
        """True if the weights are still those that were frozen."""
        return weights_hash(self.policy.model) == self.hash
