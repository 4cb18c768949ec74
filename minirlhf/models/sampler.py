"""Sampler: one object that both samples and scores, so that the two can never disagree.

The temperature and the banned ids (such as PAD and BOS, which are no text) define "the policy's distribution".
Rollouts are drawn from it and log-probabilities are read from it, for the active policy, the old one and the reference
alike. Scoring at another temperature than that of the sampling is a defect of several projects, and shows as a negative
KL.

top-k (1805.04833), top-p (1904.09751) and min-p (2407.01082) cut `sample` only, never `log_dist`: a token outside the
cut has probability 0 in sampling and not in scoring, so that training with them is not on-policy. `minirlhf run`
refuses them; the command `sample` takes them.

Not here: the loop over tokens (generate.py), and the choice of the temperature (config).
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@cache
def ids_on(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Tensor of these ids (n,), made once for each device: copying them at every step would wait for it."""
    with torch.inference_mode(False):  # sampling may ask first, and learning uses it as well
        return torch.tensor(ids, device=device, dtype=torch.long)


@dataclass(frozen=True)
class Sampler:
    """Distribution over tokens: temperature (0 = greedy, for `sample` only), banned ids, stops = ids that end a text.

    Cuts, for `sample` only: top_k (0 = off), top_p (1 = off), min_p (0 = off).
    """

    temperature: float
    banned: tuple[int, ...]
    stops: tuple[int, ...]
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def log_dist(self, logits: Tensor) -> Tensor:
        """log_softmax(logits / temperature) without the banned ids, -inf there: (...,V) -> (...,V) nats, >= float32."""
        return torch.log_softmax(self._scaled(logits), dim=-1)

    def _scaled(self, logits: Tensor) -> Tensor:
        """logits / temperature, -inf for banned ids: (...,V), at least float32; `logits` itself is left as it is."""
        scaled = logits if logits.dtype == torch.float64 else logits.float()
        scaled = scaled if self.temperature in (0, 1) else scaled / self.temperature  # greedy: the argmax is the same
        return scaled.index_fill(-1, ids_on(self.banned, logits.device), float("-inf")) if self.banned else scaled

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Sample one token a row by inverse CDF: the first id whose cumulative probability exceeds u.

        logits (B,V), uniform u (B,) in [0,1) -> ids (B,). A token of probability 0 is never taken.
        """
        # Not torch.multinomial: with one uniform a row, drawn beforehand, a token depends on neither the device's
        # generator nor the other rows, and a rollout can be replayed.
        scaled = self._scaled(logits)
        if self.temperature == 0:
            return scaled.argmax(dim=-1)
        if self.top_k or self.top_p < 1 or self.min_p > 0:
            scaled = self._cut(torch.log_softmax(scaled, dim=-1))
        # Not normalised, but relative to the most likely token, so that exp cannot overflow: u is multiplied by the
        # total instead, which saves a pass over V.
        cdf = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_().cumsum(dim=-1)  # (B,V)
        total = cdf[:, -1:]
        # right=True finds the first cdf > target, which skips ids that add nothing to the sum. Rounding could make
        # u * total equal to the total, and the search would run past the last possible token: hence nextafter.
        target = (uniform.unsqueeze(-1) * total).minimum(total.nextafter(torch.zeros_like(total)))
        # Logits that are not finite have no such id; the last one then stands for it until a guard sees their log-prob.
        return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)

    def _cut(self, log_dist: Tensor) -> Tensor:
        """Cut log-probabilities (B,V): -inf outside the top_k, outside the top_p nucleus, and below min_p p(best)."""
        ordered, index = log_dist.sort(dim=-1, descending=True)
        probs = ordered.exp()
        keep = torch.ones_like(probs, dtype=torch.bool)
        if self.top_k:
            keep[:, self.top_k :] = False
        # Mass before the token, without its own: the token that crosses top_p stays, so one always remains.
        keep &= probs.cumsum(dim=-1) - probs < self.top_p
        keep &= probs >= self.min_p * probs[:, :1]
        return torch.full_like(log_dist, float("-inf")).scatter(-1, index, ordered.where(keep, float("-inf")))
