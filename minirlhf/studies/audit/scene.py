"""Ground of every audit: a problem of the exact lab, a policy away from its reference, and batches without sampling.

An audit calls a component as the loop does, checks its result as the loop does, and whitens and weights tokens with the
loop's own functions. Only the sampling is replaced: every response occurs in the batch about as often as the policy
would write it, and a weight corrects the rounding, so that a weighted mean over the batch *is* the expectation. The
audit therefore describes the limit of a large batch. An advantage function of groups sees every possible group, with
its probability as the weight. Masked positions hold junk, which exposes a component that reads them.

Not here: the audits of the three kinds (kl.py, advantage.py, loss.py). Shapes: S states, V vocabulary, n responses of
the tree, N rows of a batch. All numbers are float64.
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

JUNK = 7.0  # content of masked positions: finite, so that a component which reads it gives a wrong number, not an error
ROWS = 1024  # rows of a representative batch, about
SAME = 1e-6  # relative bias below which two gradients are the same


@dataclass(frozen=True)
class Scene:
    """Tree of prefixes, log-probabilities of a tabular policy on it (S,V), and beta, the coefficient of its KL."""

    graph: Graph
    log_pi: Tensor
    beta: float

    @classmethod
    def of(cls, name: str = "variable", distance: float = 0.4) -> "Scene":
        """Problem `name` with a policy `distance` nats per sequence from its reference, in a fixed random direction."""
        problem = problems()[name]
        graph = exact.build_graph(problem)
        noise = torch.randn(graph.log_ref.shape, generator=generator(0, "audit", 0), dtype=torch.float64)
        return cls(graph, moved(graph, graph.log_ref, noise, distance), problem.beta)

    @cached_property
    def responses(self) -> Responses:
        """All responses of the tree: ids, states and mask (n,R), reward (n,)."""
        return exact.responses(self.graph)

    @cached_property
    def probability(self) -> Tensor:
        """Probability of each response under the policy: (n,), summing to 1."""
        return self.responses.probability(self.log_pi, self.graph.problem.prompts)

    @cached_property
    def values(self) -> Tensor:
        """V of each state under the policy, for the reward score - beta (log pi - log ref): (S,)."""
        return exact.expected(self.graph, self.log_pi, exact.shaped(self.graph, self.log_pi, self.beta))


def moved(graph: Graph, log_pi: Tensor, direction: Tensor, distance: float) -> Tensor:
    """Move a policy to a distance: log_softmax(log_pi + c direction), c such that KL(moved, log_pi) = `distance`.

    log_pi and direction (S,V); distance in nats per sequence. c is found by bisection: the KL grows with c from 0 on.
    """
    if distance == 0:
        return log_pi
    low, high = 0.0, 1.0

    def step(c: float) -> Tensor:
        table: Tensor = (log_pi + c * direction / direction.norm()).log_softmax(dim=-1)
        return table

    def kl_at(c: float) -> float:
        table = step(c)
        return float(exact.expected(graph, table, table - log_pi)[graph.layers[0]].mean())

    while kl_at(high) < distance:
        high *= 2
    for _ in range(60):  # more halvings than float64 has bits
        middle = (low + high) / 2
        low, high = (middle, high) if kl_at(middle) < distance else (low, middle)
    return step(high)


@dataclass(frozen=True)
class Batch:
    """N rows: number of each row's response (N,), its weight (N,) with mean 1, its group (N,)."""

    index: Tensor
    weight: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, numbers: list[int]) -> "Batch":
        """Batch of some of the rows."""
        return Batch(self.index[numbers], self.weight[numbers], self.group[numbers])


def each_once(scene: Scene) -> Batch:
    """Batch of every response once, weight 1: N = n."""
    rows = torch.arange(len(scene.probability))
    return Batch(rows, torch.ones(len(rows), dtype=torch.float64), rows)


def representative(probability: Tensor) -> Batch:
    """Batch of about ROWS rows with each response in proportion to its probability (n,), and at least once.

    Whitening and baselines then see the composition of a real batch. The weight, probability * N / count, corrects the
    rounding.
    """
    counts = (probability * ROWS).round().long().clamp(min=1)
    index = torch.arange(len(probability)).repeat_interleave(counts)
    weight = (probability / counts)[index] * len(index)
    return Batch(index, weight, torch.arange(len(index)))


def all_groups(probability: Tensor, size: int) -> Batch:
    """Batch of every multiset of `size` responses to a prompt, weighted by its probability of being drawn.

    A multiset with counts c_i is drawn in size! / prod(c_i!) orders, each with probability prod(p_i^c_i).
    """
    multisets = torch.tensor(list(itertools.combinations_with_replacement(range(len(probability)), size)))
    orders = torch.full((len(multisets),), float(math.factorial(size)), dtype=torch.float64)
    # The members are sorted, so equal ones are neighbours: dividing by 1, 2, ... along each run divides by c_i!.
    run = torch.ones(len(multisets), dtype=torch.float64)
    for i in range(1, size):
        run = torch.where(multisets[:, i] == multisets[:, i - 1], run + 1, 1.0)
        orders /= run
    weight = orders * probability[multisets].prod(dim=1) * len(multisets)
    group = torch.arange(len(multisets)).repeat_interleave(size)
    return Batch(multisets.flatten(), weight.repeat_interleave(size), group)


def junked(x: Tensor, mask: Tensor) -> Tensor:
    """Replace x by JUNK where the mask is False; x and mask of one shape."""
    return torch.where(mask, x, torch.full_like(x, JUNK))


def loss_weights(mask: Tensor, config: Config) -> Tensor:
    """Weight of every token in the loss under the run's aggregation, scaled to a mean of 1 over the mask: (N,R)."""
    mean_length = mask.sum() / mask.any(dim=1).sum()
    shares = token_weights(mask, mean_length, config.loss.aggregation, mask.shape[1]).double()
    return shares * mask.sum() / shares.sum()


@dataclass(frozen=True)
class GradientComparison:
    """Expected gradient of a component against the exact one, all numbers relative to the exact one.

    bias = |gradient - exact| / |exact|; cosine of the angle between them, 0 if either is 0; variance = trace of the
    covariance of one response's gradient / |exact|^2.
    """

    gradient: Tensor = field(repr=False)
    bias: float
    cosine: float
    variance: float


def compare_gradients(gradient: Tensor, exact_gradient: Tensor, squares: float, size: int = 1) -> GradientComparison:
    """Compare an expected gradient with the exact one, both (S*V,).

    squares = E |g|^2 of one sample g, the mean gradient of `size` responses: Var g = squares - |gradient|^2, and a
    single response has `size` times that.
    """
    norm, length = float(exact_gradient.norm()), float(gradient.norm())
    cosine = float((gradient * exact_gradient).sum()) / (norm * length) if norm * length > 1e-12 else 0.0
    variance = max(0.0, squares - length**2) * size / norm**2
    bias = float((gradient - exact_gradient).norm()) / norm
    return GradientComparison(gradient, bias, max(-1.0, min(1.0, cosine)), variance)


def percent(share: float) -> str:
    """Two significant digits of a share as percent: 61%, 6.3%, 0.042%; 111% from 100 % on."""
    return f"{share:.0%}" if share >= 0.095 else f"{100 * share:.2g}%"


def score_functions(scene: Scene, batch: Batch, factors: Tensor) -> Tensor:
    """Gradient of sum_t factors_t log pi(token_t) for each row, with respect to the logits of the table: (N,S*V).

    factors (N,R). The gradient of log pi(v|s) with respect to the logits of s is onehot(v) - pi(s): no autograd, which
    would give one row at a time.
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
