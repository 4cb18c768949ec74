"""Graph of a problem's states, walked backwards or forwards: everything about the problem can be computed on it.

A state is a prefix, or (`merged`) all prefixes that the problem cannot tell apart. As a tree of prefixes the graph
holds any policy, a transformer's too, and each response is one path. Merged, it stays small for long responses and
still holds the reference and the optimum: soft Bellman on the tree and dynamic programming under an n-gram reference
are the same lines.

J(pi) = E[r] - beta KL(pi, ref), averaged over prompts. Its optimum pi*(y) is proportional to ref(y) exp(r(y) / beta),
J* = beta log E_ref[exp(r / beta)], and J* - J(pi) = beta KL(pi, pi*). float64; differentiable in log_pi. Not here: the
problems (problems.py), and a transformer on them (lab.py).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minirlhf.exact.problems import Prefix, Problem

MOST_STATES = 20_000  # a tree beyond this is not enumerated


@dataclass(frozen=True)
class Graph:
    """S states, those of one depth side by side, the starts of the prompts first.

    child (S,V): the state that a token leads to, -1 if the response is over; log_ref (S,V) nats; gain (S,V): reward
    that a token adds (in a tree of prefixes all of it comes with the last token); prompt (S,); layers: states of each
    depth; prefixes: for each state one prefix that leads to it.
    """

    problem: Problem
    child: Tensor
    log_ref: Tensor
    gain: Tensor
    prompt: Tensor
    layers: tuple[slice, ...]
    prefixes: tuple[Prefix, ...]

    def __len__(self) -> int:
        return len(self.prefixes)


def build_graph(problem: Problem, *, merged: bool = False) -> Graph:
    """Build the graph of a problem. Raises ValueError for a tree of more than MOST_STATES states."""
    layer: list[tuple[int, Prefix]] = [(prompt, ()) for prompt in range(problem.prompts)]
    nodes, layers, child, gain = list(layer), [], [], []
    while layer:
        layers.append(slice(len(nodes) - len(layer), len(nodes)))
        found: dict[object, int] = {}
        following: list[tuple[int, Prefix]] = []
        for prompt, prefix in layer:
            child.append([-1] * problem.vocabulary)
            gain.append([0.0] * problem.vocabulary)
            so_far = problem.reward(prompt, prefix) if prefix else 0.0
            for token in range(problem.vocabulary):
                longer, over = (*prefix, token), problem.over((*prefix, token))
                if merged:
                    gain[-1][token] = problem.reward(prompt, longer) - so_far
                elif over:
                    gain[-1][token] = problem.reward(prompt, longer)
                if not over:
                    key = (prompt, problem.state(prompt, longer)) if merged else (prompt, longer)
                    if key not in found:
                        found[key] = len(nodes) + len(following)
                        following.append((prompt, longer))
                    child[-1][token] = found[key]
        nodes += following
        layer = following
        if len(nodes) > MOST_STATES:
            raise ValueError(f"{problem.name} has more than {MOST_STATES} prefixes: too many to enumerate")
    logits = torch.tensor([list(problem.reference(*node)) for node in nodes], dtype=torch.float64)
    return Graph(
        problem,
        child=torch.tensor(child),
        log_ref=logits.log_softmax(dim=-1),
        gain=torch.tensor(gain, dtype=torch.float64),
        prompt=torch.tensor([prompt for prompt, _ in nodes]),
        layers=tuple(layers),
        prefixes=tuple(prefix for _, prefix in nodes),
    )


def expected(graph: Graph, log_pi: Tensor, payoff: Tensor) -> Tensor:
    """Expected sum of the payoffs (S,V) from each state to the end, following pi: (S,). Backwards, layer by layer."""
    pi, values = log_pi.exp(), [payoff.new_zeros(1)]  # the last entry, index -1: the response is over
    for layer in reversed(graph.layers):
        offset = layer.stop  # `values` holds the states from `offset` on
        child = torch.where(graph.child[layer] < 0, -1, graph.child[layer] - offset)
        here = (pi[layer] * (payoff[layer] + torch.cat(values)[child])).sum(dim=-1)
        values.insert(0, here)
    return torch.cat(values)[:-1]


def shaped(graph: Graph, log_pi: Tensor, beta: float) -> Tensor:
    """Payoff whose expectation is J: gain - beta (log pi - log ref), (S,V), score units."""
    return graph.gain - beta * (log_pi - graph.log_ref)


def objective(graph: Graph, log_pi: Tensor, beta: float) -> Tensor:
    """J(pi), score units, averaged over prompts: 0-d, differentiable."""
    return expected(graph, log_pi, shaped(graph, log_pi, beta))[graph.layers[0]].mean()


def divergence(graph: Graph, log_pi: Tensor) -> Tensor:
    """KL(pi, ref) of whole responses, nats per sequence, averaged over prompts: 0-d, differentiable."""
    return expected(graph, log_pi, log_pi - graph.log_ref)[graph.layers[0]].mean()


def optimum(graph: Graph, beta: float) -> tuple[Tensor, Tensor]:
    """(log pi* (S,V), V* (S,)) by soft Bellman: V*(s) = beta log sum_v ref(v) exp((gain(s,v) + V*(s')) / beta).

    With beta = 0 there is no KL to pay for: the best tokens are taken, tokens of equal worth alike.
    """
    # Backwards, so that V* of the following states is known. The max of the ordinary Bellman backup becomes a
    # logsumexp weighted by ref, because KL(pi, ref) of a whole response is the sum of the KLs of its tokens: the best
    # pi(v | s) is then the softmax of log ref + worth / beta, state by state, and V* is its normaliser times beta.
    values = [graph.gain.new_zeros(1)]  # index -1: the response is over, nothing more to gain
    log_pi: list[Tensor] = []
    for layer in reversed(graph.layers):
        child = torch.where(graph.child[layer] < 0, -1, graph.child[layer] - layer.stop)
        worth = graph.gain[layer] + torch.cat(values)[child]
        if beta == 0:
            best = worth.max(dim=-1, keepdim=True).values
            values.insert(0, best.squeeze(-1))
            log_pi.insert(0, torch.where(worth > best - 1e-9, 0.0, -torch.inf).double().log_softmax(dim=-1))
            continue
        scores = graph.log_ref[layer] + worth / beta
        values.insert(0, beta * scores.logsumexp(dim=-1))
        log_pi.insert(0, scores.log_softmax(dim=-1))
    return torch.cat(log_pi), torch.cat(values)[:-1]


def occupancy(graph: Graph, log_pi: Tensor) -> Tensor:
    """Probability of visiting each state, prompts weighing alike: (S,)."""
    reached = log_pi.new_zeros(len(graph))
    reached[graph.layers[0]] = 1 / graph.problem.prompts
    for layer in graph.layers[:-1]:
        flow = reached[layer].unsqueeze(1) * log_pi[layer].exp()
        goes_on = graph.child[layer] >= 0
        reached = reached.index_add(0, graph.child[layer][goes_on], flow[goes_on])
    return reached


def achieved(graph: Graph, value: float, beta: float) -> float | None:
    """F = (J - J_ref) / (J* - J_ref): share of the possible gain that was achieved; None if J* = J_ref."""
    reference = float(objective(graph, graph.log_ref, beta))
    best = float(optimum(graph, beta)[1][graph.layers[0]].mean())
    return None if best - reference < 1e-9 else (value - reference) / (best - reference)


@dataclass(frozen=True)
class Responses:
    """All n responses of a tree of prefixes.

    ids (n,T): tokens, 0 behind the end; mask (n,T); states (n,T): where each token was chosen; reward (n,); prompt
    (n,); terminated (n,): ended by EOS.
    """

    ids: Tensor
    mask: Tensor
    states: Tensor
    reward: Tensor
    prompt: Tensor
    terminated: Tensor

    def taken(self, table: Tensor) -> Tensor:
        """Entries of a table (S,V) for the tokens taken: (n,T), 0 where masked; differentiable."""
        return torch.where(self.mask, table[self.states, self.ids], 0.0)

    def probability(self, log_pi: Tensor, prompts: int) -> Tensor:
        """Probability of each response, prompts weighing alike: (n,), summing to 1."""
        return self.taken(log_pi).sum(dim=1).exp() / prompts


def responses(graph: Graph) -> Responses:
    """Enumerate every path of a tree of prefixes to its end."""
    problem, rows = graph.problem, []
    for state, prefix in enumerate(graph.prefixes):
        for token in range(problem.vocabulary):
            if graph.child[state, token] < 0:
                rows.append((int(graph.prompt[state]), (*prefix, token)))
    index = {(int(p), prefix): s for s, (p, prefix) in enumerate(zip(graph.prompt, graph.prefixes, strict=True))}
    ids, states = (torch.zeros(len(rows), problem.horizon, dtype=torch.long) for _ in range(2))
    mask = torch.zeros(len(rows), problem.horizon, dtype=torch.bool)
    for i, (prompt, tokens) in enumerate(rows):
        for t, token in enumerate(tokens):
            ids[i, t], mask[i, t], states[i, t] = token, True, index[prompt, tokens[:t]]
    eos = problem.vocabulary - 1
    return Responses(
        ids,
        mask,
        states,
        reward=torch.tensor([problem.reward(p, tokens) for p, tokens in rows], dtype=torch.float64),
        prompt=torch.tensor([p for p, _ in rows]),
        terminated=torch.tensor([problem.ends and tokens[-1] == eos for _, tokens in rows]),
    )
