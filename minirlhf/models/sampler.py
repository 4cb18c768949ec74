"""One object for sampling AND scoring, so that the two can never disagree.

The temperature and the banned ids (PAD and BOS, which a text never holds in its middle) define what "the policy's
distribution" means; rollouts are drawn from it and log-probabilities are read from it, for the active policy, the
old one and the reference alike. Scoring at another temperature than the one sampled at is a defect of several
projects, and shows as a negative KL.

top-k, top-p and min-p cut `sample` only, never `log_dist`: a token outside the cut has probability 0 under what was
sampled and not under what is scored, so training with them is not on-policy. `minirlhf run` refuses them; the
command `sample` takes them.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@cache
def ids_on(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """These ids as a tensor, made once for a device."""
    return torch.tensor(ids, device=device)


@dataclass(frozen=True)
class Sampler:
    """temperature (0 = greedy, for `sample` only); banned ids; stop = the EOS id; top_k 0, top_p 1, min_p 0 = off."""

    temperature: float
    banned: tuple[int, ...]
    stop: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def log_dist(self, logits: Tensor) -> Tensor:
        """logits (...,V) -> log-probabilities (...,V), nats; -inf for banned ids. At least float32."""
        return torch.log_softmax(self._scaled(logits), dim=-1)

    def _scaled(self, logits: Tensor) -> Tensor:
        """Logits over the temperature, -inf for banned ids: a copy of our own, at least float32."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scaled = logits / (self.temperature or 1.0)
        return scaled.index_fill_(-1, ids_on(self.banned, logits.device), float("-inf")) if self.banned else scaled

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row by inverse CDF: logits (B,V), uniform (B,) in [0,1) -> ids (B,).

        A token of probability 0 is never taken: the search is for the first id whose cumulative probability
        *exceeds* u, and u is kept below the total so that rounding cannot run past the last possible token.
        """
        scaled = self._scaled(logits)
        if self.temperature == 0:
            return scaled.argmax(dim=-1)
        if self.top_k or self.top_p < 1 or self.min_p > 0:
            scaled = self._cut(torch.log_softmax(scaled, dim=-1))
        # Relative to the most likely token: what normalises a distribution normalises the target as well.
        cdf = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_().cumsum(dim=-1)
        total = cdf[:, -1:]
        target = (uniform.unsqueeze(-1).to(cdf.dtype) * total).minimum(total.nextafter(torch.zeros_like(total)))
        return torch.searchsorted(cdf, target, right=True).squeeze(-1)

    def _cut(self, log_dist: Tensor) -> Tensor:
        """-inf outside the most likely top_k, outside the top_p nucleus, and below min_p of the most likely."""
        ordered, index = log_dist.sort(dim=-1, descending=True)
        probs = ordered.exp()
        keep = torch.ones_like(probs, dtype=torch.bool)
        if self.top_k:
            keep[:, self.top_k :] = False
        keep &= probs.cumsum(dim=-1) - probs < self.top_p  # the token that crosses top_p stays
        keep &= probs >= self.min_p * probs[:, :1]
        return torch.full_like(log_dist, float("-inf")).scatter(-1, index, ordered.where(keep, float("-inf")))
