"""What every audit looks at: one problem of the exact lab, a policy off its reference, and batches that stand for it.

An audit calls a component as the loop does, checks its result as the loop does, and whitens and weights tokens with the
loop's own functions. Only the sampling is replaced: a batch in which every response occurs about as often as the policy
would write it, with a weight for the rest of the way, so that a mean over the batch *is* the expectation. Its limit is
that of a large batch; a group function sees every possible group, weighted by how likely it is.

What is masked holds junk, so that a component which reads it is found out.
"""

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from minirlhf.config.schema import Config
from minirlhf.exact import graph as exact
from minirlhf.exact.graph import Graph, Responses
from minirlhf.exact.problems import problems
from minirlhf.ppo import token_weights
from minirlhf.streams import generator

JUNK = 7.0  # what masked positions hold
ROWS = 1024  # rows of a batch that stands for the policy
SAME = 1e-6  # two gradients this close are one


@dataclass(frozen=True)
class Scene:
    """graph = the tree of prefixes; log_pi (S,V) the policy; beta of the problem. float64."""

    graph: Graph
    log_pi: Tensor
    beta: float

    @classmethod
    def of(cls, name: str = "variable", distance: float = 0.4) -> "Scene":
        """The problem `name` with a policy `distance` nats per sequence from its reference, in a random direction."""
        problem = problems()[name]
        graph = exact.build(problem)
        noise = torch.randn(graph.log_ref.shape, generator=generator(0, "audit", 0), dtype=torch.float64)
        return cls(graph, moved(graph, graph.log_ref, noise, distance), problem.beta)

    @cached_property
    def responses(self) -> Responses:
        return exact.responses(self.graph)

    @cached_property
    def probability(self) -> Tensor:
        """How likely the policy is to write each response: (n,)."""
        return self.responses.probability(self.log_pi, self.graph.problem.prompts)

    @cached_property
    def values(self) -> Tensor:
        """V of each state under the policy, shaped reward: (S,)."""
        return exact.expected(self.graph, self.log_pi, exact.shaped(self.graph, self.log_pi, self.beta))


def moved(graph: Graph, log_pi: Tensor, direction: Tensor, distance: float) -> Tensor:
    """log_softmax(log_pi + c direction) with c such that the KL from there to log_pi is `distance` nats a sequence."""
    if distance == 0:
        return log_pi
    low, high = 0.0, 1.0

    def step(c: float) -> Tensor:
        table: Tensor = (log_pi + c * direction / direction.norm()).log_softmax(dim=-1)
        return table

    def far(c: float) -> float:
        table = step(c)
        return float(exact.expected(graph, table, table - log_pi)[graph.layers[0]].mean())

    while far(high) < distance:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if far(middle) < distance else (low, middle)
    return step(high)


@dataclass(frozen=True)
class Batch:
    """N rows: which response each is (N,), its weight (N,) with mean 1, its group (N,)."""

    index: Tensor
    weight: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.index)


def each_once(scene: Scene) -> Batch:
    """Every response, once."""
    rows = torch.arange(len(scene.probability))
    return Batch(rows, torch.ones(len(rows), dtype=torch.float64), rows)


def representative(probability: Tensor) -> Batch:
    """Each response about as often as it is likely, at least once; the weight makes up for the rounding."""
    counts = (probability * ROWS).round().long().clamp(min=1)
    index = torch.arange(len(probability)).repeat_interleave(counts)
    weight = (probability / counts)[index] * len(index)
    return Batch(index, weight, torch.arange(len(index)))


def all_groups(probability: Tensor, size: int) -> Batch:
    """Every multiset of `size` responses to a prompt, weighted by how likely it is to be drawn."""
    found = torch.tensor(list(itertools.combinations_with_replacement(range(len(probability)), size)))
    orders = torch.full((len(found),), float(math.factorial(size)), dtype=torch.float64)
    run = torch.ones(len(found), dtype=torch.float64)
    for i in range(1, size):  # size! / product of (how often each occurs)!
        run = torch.where(found[:, i] == found[:, i - 1], run + 1, 1.0)
        orders /= run
    weight = orders * probability[found].prod(dim=1) * len(found)
    group = torch.arange(len(found)).repeat_interleave(size)
    return Batch(found.flatten(), weight.repeat_interleave(size), group)


def junked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, junk elsewhere."""
    return torch.where(mask, x, torch.full_like(x, JUNK))


def weights(mask: Tensor, config: Config) -> Tensor:
    """The loop's share of every token in the loss, scaled to a mean of 1: (N,R)."""
    shares = token_weights(mask, config.loss.aggregation, mask.shape[1]).double()
    return shares * mask.sum() / shares.sum()


@dataclass(frozen=True)
class Found:
    """A gradient held against the exact one.

    bias = norm of the difference over the norm of the exact one; cosine of the angle between them (0 where one is 0);
    variance of the gradient of one response (its trace) over the squared norm of the exact one.
    """

    gradient: Tensor = field(repr=False)
    bias: float
    cosine: float
    variance: float


def hold(gradient: Tensor, exact_gradient: Tensor, squares: float, size: int = 1) -> Found:
    """squares = E of the squared norm of the gradient of `size` responses averaged."""
    norm, length = float(exact_gradient.norm()), float(gradient.norm())
    cosine = float((gradient * exact_gradient).sum()) / (norm * length) if norm * length > 1e-12 else 0.0
    variance = max(0.0, squares - length**2) * size / norm**2
    return Found(gradient, float((gradient - exact_gradient).norm()) / norm, max(-1.0, min(1.0, cosine)), variance)


def score_functions(scene: Scene, batch: Batch, factors: Tensor) -> Tensor:
    """sum_t factors_t grad log pi(token_t) of each row, with respect to the logits of the table: (N,S*V).

    grad of log pi(v|s) with respect to the logits of s is onehot(v) - pi(s).
    """
    r = scene.responses
    states, ids, mask = r.states[batch.index], r.ids[batch.index], r.mask[batch.index]
    vocabulary, pi = scene.log_pi.shape[1], scene.log_pi.exp()
    out = factors.new_zeros(len(batch), scene.log_pi.numel())
    for t in range(mask.shape[1]):
        at = torch.where(mask[:, t], factors[:, t], 0.0).unsqueeze(1)
        local = at * (torch.nn.functional.one_hot(ids[:, t], vocabulary) - pi[states[:, t]])
        columns = states[:, t : t + 1] * vocabulary + torch.arange(vocabulary)
        out.scatter_add_(1, columns, local)
    return out
