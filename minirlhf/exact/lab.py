"""Exact lab: a transformer on a problem, with its tokenizer and sampler, the table as its reference, the fit, and F.

Transformer and loop are the real ones. Only three things differ from a run on text: the base is fitted to the problem's
reference instead of to a corpus, KL is measured against the problem's table, and the policy may choose the problem's
tokens only. Not here: the problems (problems.py) and computations on their graphs (graph.py).
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.errors import DivergedError
from minirlhf.exact import graph as exact
from minirlhf.exact.graph import MOST_STATES, Graph
from minirlhf.exact.problems import Prefix, Problem
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy, Reference, entropy
from minirlhf.models.rollout import PolicyOutput, Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer
from minirlhf.streams import generator
from minirlhf.tensors import gather_logprobs
from minirlhf.text.tokenizer import MIN_VOCAB, Tokenizer, train_tokenizer

COLUMNS = ("exact_problem", "exact_prompt")  # of a prompt: the problem's name, which of its prompts
FIT_KL = 1e-5  # nats per sequence between the fitted transformer and the table
FIT_STEPS = 200  # of up to ten iterations each
FIT_ROWS = 256  # responses to fit to, where not all prefixes can be had
ESTIMATE_ROWS = 4096  # responses that J is estimated from, where it cannot be enumerated
ROWS = 512  # prefixes scored at a time


def problem_tokenizer() -> Tokenizer:
    """Byte-level tokenizer without merges: each letter is a token."""
    return train_tokenizer([], MIN_VOCAB)


def token_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
    """Ids of the problem's tokens 0 .. V-1, EOS last if responses can end by it."""
    return tokenizer.encode(problem.letters) + ([tokenizer.eos_id] if problem.ends else [])


def problem_sampler(problem: Problem, tokenizer: Tokenizer, temperature: float) -> Sampler:
    """Sampler that may choose the problem's tokens and no others."""
    allowed = set(token_ids(problem, tokenizer))
    banned = tuple(i for i in range(tokenizer.vocab_size) if i not in allowed)
    return Sampler(temperature, banned=banned, stops=tokenizer.stops)


def fingerprint(problem: Problem) -> str:
    """SHA-256 over everything that decides the fit: the table of the reference, and which state follows which."""
    graph = exact.build_graph(problem, merged=True)
    table = torch.cat([graph.log_ref, graph.child.double()], dim=1)
    return hashlib.sha256(table.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def problem_prompts(problem: Problem) -> list[tuple[str, dict[str, Any]]]:
    """(text, columns) of each prompt."""
    return [
        (problem.prompt_text(p), dict(zip(COLUMNS, (problem.name, p), strict=True))) for p in range(problem.prompts)
    ]


def prompt_batch(problem: Problem, tokenizer: Tokenizer, which: Sequence[int], device: torch.device) -> PromptBatch:
    """Batch with one row for each entry of `which`, the number of a prompt."""
    prompts = problem_prompts(problem)
    chosen = [prompts[p] for p in which]
    return PromptBatch.build([text for text, _ in chosen], [c for _, c in chosen], tokenizer, device=device)


class TableReference(Reference):
    """Reference whose log-probs come from the problem's table; the fitted transformer samples."""

    def __init__(self, policy: Policy, problem: Problem, tokenizer: Tokenizer) -> None:
        super().__init__(policy)
        self._graph = exact.build_graph(problem, merged=True)
        self._states = {
            (int(p), problem.state(int(p), prefix), len(prefix)): s
            for s, (p, prefix) in enumerate(zip(self._graph.prompt, self._graph.prefixes, strict=True))
        }
        self._ids = token_ids(problem, tokenizer)
        device = policy.model.embed_tokens.weight.device
        table = torch.full((len(self._graph) + 1, tokenizer.vocab_size), float("-inf"))
        table[:-1, self._ids] = self._graph.log_ref.float()
        table[-1] = table[0]  # what padding reads: some distribution
        self._table = table.to(device)

    def forward_pass(self, rollout: Rollout, *, with_entropy: bool = True) -> PolicyOutput:
        """Log-probabilities of the table for the tokens taken; it has no values."""
        states = self.states(rollout).to(self._table.device)
        dist, real = self._table[states], rollout.response_mask
        logprobs = gather_logprobs(dist, rollout.response_ids).where(real, 0.0)
        zeros = torch.zeros_like(logprobs)
        return PolicyOutput(
            logprobs=logprobs,
            values=zeros,
            next_value=zeros[:, 0],
            entropy=lambda: entropy(dist).where(real, 0.0),
            log_dist=lambda rows: self._table[states[rows]],
        )

    def states(self, rollout: Rollout) -> Tensor:
        """Merged state at each response token: (B,R); one past the last where padded."""
        problem, padding = self._graph.problem, len(self._graph)
        token = {identifier: v for v, identifier in enumerate(self._ids)}
        out = torch.full(rollout.mask.shape, padding)
        for row, (ids, prompt) in enumerate(zip(rollout.completion_id_lists, rollout.columns[COLUMNS[1]], strict=True)):
            prefix: Prefix = ()
            for t, identifier in enumerate(ids):
                out[row, t] = self._states[prompt, problem.state(prompt, prefix), t]
                prefix = (*prefix, token[identifier])
        return out

    def value(self, policy: Policy, rollout: Rollout, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """(J, reward, KL in nats) of the path of each response, (B,) each; unbiased for the policy's own responses.

        At each state that the response visits, the expectation over the next token replaces the token taken. By the
        tower rule the expected sum is the same. The variance is usually lower, but not for certain: what a token gains
        may offset what the states behind it gain, and the expectation keeps only the second.
        """
        states, mask = self.states(rollout), rollout.response_mask.cpu()
        log_pi = policy.forward_pass(rollout).log_dist(slice(None))[..., self._ids].double().cpu()
        pi, known = log_pi.exp(), states.clamp(max=len(self._graph) - 1)
        gain = torch.where(mask, (pi * self._graph.gain[known]).sum(dim=-1), 0.0).sum(dim=1)
        kl = torch.where(mask, (pi * (log_pi - self._graph.log_ref[known])).sum(dim=-1), 0.0).sum(dim=1)
        return gain - beta * kl, gain, kl


@torch.no_grad()
def tabulate(policy: Policy, graph: Graph, tokenizer: Tokenizer) -> Tensor:
    """Distribution of the policy after each prefix of a tree: (S,V) log-probs, float64."""
    problem, device = graph.problem, policy.model.embed_tokens.weight.device
    ids = torch.tensor(token_ids(problem, tokenizer), device=device)
    tables = []
    for start in range(0, len(graph), ROWS):
        prefixes = graph.prefixes[start : start + ROWS]
        rollout = _prefixes(problem, tokenizer, prefixes, graph.prompt[start : start + ROWS].tolist(), device)
        at = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        dist = policy.forward_pass(rollout).log_dist(slice(None))[torch.arange(len(prefixes), device=device), at]
        tables.append(dist[:, ids].double().cpu().log_softmax(dim=-1))
    return torch.cat(tables)


def _prefixes(
    problem: Problem, tokenizer: Tokenizer, prefixes: Sequence[Prefix], prompts: Sequence[int], device: torch.device
) -> Rollout:
    """Rollout whose responses are these prefixes and one token more, so that each has a next distribution."""
    batch = prompt_batch(problem, tokenizer, prompts, device)
    ids = token_ids(problem, tokenizer)
    width = max(len(prefix) for prefix in prefixes) + 1
    response = torch.full((len(prefixes), width), ids[0])
    for row, prefix in enumerate(prefixes):
        response[row, : len(prefix)] = torch.tensor([ids[v] for v in prefix])
    lengths = torch.tensor([[len(prefix) + 1] for prefix in prefixes])
    mask = (torch.arange(width) < lengths).to(device)
    return Rollout(
        batch.ids, batch.mask, response.to(device), mask, mask, torch.zeros_like(mask[:, 0]), batch.group,
        batch.texts, tuple("" for _ in prefixes), batch.columns,
    )  # fmt: skip


def enumerable(problem: Problem) -> bool:
    """True if there are few enough prefixes to tabulate a transformer."""
    longest: int = problem.vocabulary ** (problem.horizon - 1)
    return problem.prompts * longest <= MOST_STATES // 4


@torch.no_grad()
def optimality(
    policy: Policy, problem: Problem, tokenizer: Tokenizer, beta: float, *, seed: int = 0
) -> dict[str, float | None]:
    """Position of the policy: {"optimality": F, "objective": J, "best": J*, "reward", "kl" in nats per sequence}.

    All of it in J = the problem's own score - beta KL, whatever a run has changed about what it optimises.
    By enumeration if the problem is small enough, else estimated from ESTIMATE_ROWS of the policy's own responses.
    """
    merged = exact.build_graph(problem, merged=True)
    best = float(exact.optimum(merged, beta)[1][merged.layers[0]].mean())
    if enumerable(problem):
        tree = exact.build_graph(problem)
        log_pi = tabulate(policy, tree, tokenizer)
        value, kl = float(exact.objective(tree, log_pi, beta)), float(exact.divergence(tree, log_pi))
        reward = value + beta * kl
    else:
        table = TableReference(policy, problem, tokenizer)
        parts = [table.value(policy, rollout, beta) for rollout in _own(policy, problem, tokenizer, seed)]
        value, reward, kl = (float(torch.cat(part).mean()) for part in zip(*parts, strict=True))
    share = exact.achieved(merged, value, beta)
    return {"optimality": share, "objective": value, "best": best, "reward": reward, "kl": kl}


def reference_objective(problem: Problem) -> float:
    """J of the problem's reference, score units: its expected score, since its KL is 0."""
    merged = exact.build_graph(problem, merged=True)
    return float(exact.objective(merged, merged.log_ref, 0.0))


def _own(policy: Policy, problem: Problem, tokenizer: Tokenizer, seed: int) -> list[Rollout]:
    device = policy.model.embed_tokens.weight.device
    which = [p % problem.prompts for p in range(ROWS)]
    batch = prompt_batch(problem, tokenizer, which, device)
    return [
        generate(policy, batch, tokenizer, max_new_tokens=problem.horizon, generator=generator(seed, "exact", part))
        for part in range(ESTIMATE_ROWS // ROWS)
    ]


# ---- the fit -----------------------------------------------------------------------------------------------


def fit_to_problem(
    trunk: Transformer, problem: Problem, tokenizer: Tokenizer, temperature: float, seed: int
) -> dict[str, float]:
    """Train the transformer until it is the problem's reference: KL below FIT_KL nats per sequence.

    Minimises KL(table, transformer) at all prefixes (or at those of some random responses, if there are too many) by
    L-BFGS, from an output of 0, which is the uniform distribution. Returns {"kl": KL reached, "steps"}. Raises
    DivergedError if FIT_STEPS do not suffice.
    """
    policy = Policy(trunk, problem_sampler(problem, tokenizer, temperature))
    torch.nn.init.zeros_(trunk.norm.weight)
    table = TableReference(policy, problem, tokenizer)
    rollout = _longest_prefixes(problem, tokenizer, trunk, generator(seed, "fit", 0))
    ids = torch.tensor(token_ids(problem, tokenizer), device=trunk.embed_tokens.weight.device)
    target = table.forward_pass(rollout).log_dist(slice(None))[..., ids]
    optimizer = torch.optim.LBFGS(trunk.parameters(), max_iter=10, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        found = policy.forward_pass(rollout).log_dist(slice(None))[..., ids]
        value = (target.exp() * (target - found)).sum(dim=-1)[rollout.mask].mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    for step in range(FIT_STEPS):
        kl = _distance(policy, table, problem, tokenizer, seed)
        if kl < FIT_KL / 2:
            optimizer.zero_grad()
            return {"kl": kl, "steps": float(step)}
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    raise DivergedError(
        f"the fit to the problem's reference ended at a KL of {kl:.1e} nats", problem.name, "try a larger model"
    )


@torch.no_grad()
def _distance(policy: Policy, table: TableReference, problem: Problem, tokenizer: Tokenizer, seed: int) -> float:
    """KL(transformer, table) in nats per sequence."""
    if enumerable(problem):
        tree = exact.build_graph(problem)
        return float(exact.divergence(tree, tabulate(policy, tree, tokenizer)))
    return float(table.value(policy, _own(policy, problem, tokenizer, seed)[0], 1.0)[2].mean())


def _longest_prefixes(problem: Problem, tokenizer: Tokenizer, trunk: Transformer, random: torch.Generator) -> Rollout:
    """Responses that contain all prefixes between them; FIT_ROWS of random tokens if those are too many."""
    letters, length = problem.vocabulary - problem.ends, problem.horizon - 1
    if enumerable(problem):
        texts = list(itertools.product(range(letters), repeat=length))
        rows = [(prompt, text) for prompt in range(problem.prompts) for text in texts]
    else:
        drawn = torch.randint(letters, (FIT_ROWS, length), generator=random).tolist()
        rows = [(i % problem.prompts, tuple(text)) for i, text in enumerate(drawn)]
    prompts, prefixes = [prompt for prompt, _ in rows], [text for _, text in rows]
    return _prefixes(problem, tokenizer, prefixes, prompts, trunk.embed_tokens.weight.device)
