"""Audit of an advantage function: bias and variance of the policy gradient that it gives.

The objective is J = E[score] - beta KL of a problem, with the KL as k1 in the reward. The gradient sum_t A_t grad log
pi_t, with the run's whitening (its scale multiplied back) and aggregation, with respect to the logits of a tabular
policy, is compared with the exact one; the variance is that of one response's gradient. V is exact, 0, or exact plus
noise: a perfect critic, an untrained one, one in between. A function with an option `lam` or `n` is audited at its own
value and at several others; the verdict is about its own.

Not here: KL estimators and policy losses (kl.py, loss.py); the table that is printed (cli/audit.py).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.exact import graph as exact
from minirlhf.rewards.shape import place_rewards
from minirlhf.rl.terms import AdvantageInputs, estimate_advantages
from minirlhf.streams import generator
from minirlhf.studies.audit.scene import (
    SAME,
    Batch,
    Scene,
    all_groups,
    compare_gradients,
    each_once,
    junked,
    loss_weights,
    percent,
    representative,
    score_functions,
)
from minirlhf.tensors import Whitening, whiten

GROUP = 4  # responses to a prompt
NOISE = 0.3  # standard deviation of the noisy V, score units
VALUES = {"exact": "an exact V", "zero": "V = 0", "noisy": "a noisy V", "unused": "no V"}  # V of a row, in words
# Options that trade bias for variance, and the values to audit beside the function's own.
TRADE_OFFS: dict[str, tuple[float | int, ...]] = {"lam": (0.0, 0.5, 0.9, 0.95, 1.0), "n": (1, 2, 3, 4)}


def over_trade_off(built: Built) -> list[Built]:
    """Build the function with each value of its option that trades bias for variance; as it is if it has none."""
    option = trade_off(built)
    if option is None:
        return [built]
    values = sorted({*TRADE_OFFS[option], built.option(option, None)})
    return [built.component.build({**built.options, option: value}) for value in values]


def trade_off(built: Built) -> str | None:
    """Name of the option that trades bias for variance, None without a number of such a name."""
    numbers = (name for name in TRADE_OFFS if isinstance(built.option(name, None), int | float))
    return next(numbers, None)


def audit_advantage(advantage: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """Yield one dict for each value of the trade-off and each V; the last one holds the verdict."""
    noise = torch.randn(scene.values.shape, generator=generator(0, "audit", 2), dtype=torch.float64)
    critics = {"exact": scene.values, "zero": torch.zeros_like(scene.values), "noisy": scene.values + NOISE * noise}
    if not advantage.names("values"):
        critics = {"unused": scene.values}
    if advantage.names("group"):
        batch, size = all_groups(scene.probability, GROUP), GROUP
    else:
        batch, size = representative(scene.probability), 1
    rows = []
    for built in over_trade_off(advantage):
        for critic, values in critics.items():
            comparison = advantage_gradient(built, config, whitening, scene, batch, size, values)
            varied = {name: value for name, value in built.options.items() if name in TRADE_OFFS}
            own = all(built.option(name, None) == advantage.option(name, None) for name in varied)
            rows.append({"options": varied, "own": own, "values": critic, **comparison})
    name = {"kind": "advantage", "name": advantage.component.name, "owner": advantage.component.owner}
    for row in rows[:-1]:
        yield {**name, **row}
    yield {**name, **rows[-1], "verdict": advantage_verdict(advantage.component.name, rows, size)}


def advantage_gradient(
    advantage: Built, config: Config, whitening: Whitening, scene: Scene, batch: Batch, size: int, values: Tensor
) -> dict[str, float]:
    """Compare the expected policy gradient that this function gives with that of J.

    size: responses of a group, 1 without groups. values (S,): the critic's V of each state.
    """
    mask = scene.responses.mask[batch.index]
    advantages = estimate_advantages(advantage, advantage_inputs(scene, batch, values))
    # whiten divides by the batch's scale; multiplied back, so that the length of the gradient is that of J's
    white, scale = whiten(advantages, mask, whitening)
    rows = score_functions(scene, batch, loss_weights(mask, config) * white * scale)
    weight = batch.weight
    # The responses of a group are not independent (each is in the others' baseline): the group is the sample.
    if size > 1:
        rows, weight = rows.reshape(-1, size, rows.shape[1]).mean(dim=1), weight[::size]
    expected = (rows * weight.unsqueeze(1)).mean(dim=0)
    squares = float((rows.square().sum(dim=1) * weight).mean())
    variance = max(0.0, squares - float(expected.square().sum()))
    if size == 1 and reads_other_rows(advantage, scene, values):
        expected = expected_over_pairs(advantage, config, scene, batch, values)
    exact_gradient = objective_gradient(scene, scene.log_pi)
    comparison = compare_gradients(expected, exact_gradient, variance + float(expected.square().sum()), size)
    return {
        "gradient_bias": comparison.bias,
        "gradient_cosine": comparison.cosine,
        "gradient_variance": comparison.variance,
    }


def reads_other_rows(advantage: Built, scene: Scene, values: Tensor) -> bool:
    """True if a function gives a response other advantages beside the others than alone, as with a baseline of them."""
    every = each_once(scene)
    together = estimate_advantages(advantage, advantage_inputs(scene, every, values))
    alone = [
        estimate_advantages(advantage, advantage_inputs(scene, every.rows([i]), values)) for i in range(len(every))
    ]
    return not torch.allclose(together, torch.cat(alone), rtol=0.0, atol=1e-12)


def expected_over_pairs(advantage: Built, config: Config, scene: Scene, batch: Batch, values: Tensor) -> Tensor:
    """Expected gradient of a function that reads the other rows, over all batches of two responses: (S*V,).

    In `batch` the other rows are always the same, so that a baseline of them would not be independent of the row.
    """
    pairs = all_groups(scene.probability, 2)
    found = [
        estimate_advantages(advantage, advantage_inputs(scene, pairs.rows([i, i + 1]), values))
        for i in range(0, len(pairs), 2)
    ]
    weights = loss_weights(scene.responses.mask[batch.index], config)[torch.searchsorted(batch.index, pairs.index)]
    rows = score_functions(scene, pairs, weights * torch.cat(found))
    return (rows * pairs.weight.unsqueeze(1)).mean(dim=0)


def objective_gradient(scene: Scene, log_pi: Tensor) -> Tensor:
    """Exact gradient of J at a policy (S,V) with respect to its logits: (S*V,)."""
    theta = log_pi.clone().requires_grad_()
    value = exact.objective(scene.graph, theta.log_softmax(dim=-1), scene.beta)
    return torch.autograd.grad(value, theta)[0].flatten()


def advantage_inputs(scene: Scene, batch: Batch, values: Tensor) -> AdvantageInputs:
    """Everything that an advantage function may name, for the rows of a batch; values (S,), one for each state."""
    r = scene.responses
    mask, states, ids = (x[batch.index] for x in (r.mask, r.states, r.ids))
    logprobs, ref = scene.log_pi[states, ids], scene.graph.log_ref[states, ids]
    kl = torch.where(mask, logprobs - ref, 0.0)
    scores, zeros = r.reward[batch.index], torch.zeros(len(batch), dtype=torch.float64)
    rewards = place_rewards(scores, torch.zeros_like(kl), scene.beta * kl, mask)
    return AdvantageInputs(
        rewards=junked(rewards, mask),
        values=junked(values[states], mask),
        mask=mask,
        scores=scores,
        greedy_scores=zeros + greedy_return(scene),
        group=batch.group,
        logprobs=junked(logprobs, mask),
        ref_logprobs=junked(ref, mask),
        kl=junked(kl, mask),
        terminated=r.terminated[batch.index],
        bootstrap_values=zeros,
    )


def greedy_return(scene: Scene) -> float:
    """Score - beta log(pi/ref) of the greedy response to the first prompt (most likely token at every step)."""
    state, total, payoff = 0, 0.0, exact.shaped(scene.graph, scene.log_pi, scene.beta)
    while state >= 0:
        token = int(scene.log_pi[state].argmax())
        total, state = total + float(payoff[state, token]), int(scene.graph.child[state, token])
    return total


def advantage_verdict(name: str, rows: list[dict[str, Any]], size: int) -> str:
    """One line that compares the gradient with that of J: exact, exact if V is, wrong in length, or biased.

    It is about the function with its own options, whose rows have `own`; the others are in the table. size: responses
    of a group, 1 without groups.
    """
    own = {row["values"]: row for row in rows if row["own"]}
    known = next(own[values] for values in ("exact", "unused") if values in own)
    options = ", ".join(f"{option} {value:g}" for option, value in known["options"].items())
    subject = f"{name} ({options})" if options else name
    tail = f"{f', in groups of {size}' if size > 1 else ''}; variance {known['gradient_variance']:.3g}"
    if known["gradient_cosine"] < 0:
        return f"{subject}: points away from the objective{tail}"
    right = "the gradient of score - beta KL"
    if known["gradient_bias"] < SAME:
        biases = {VALUES[values]: row["gradient_bias"] for values, row in own.items() if row is not known}
        off = [f"off by {percent(bias)} with {v}" for v, bias in biases.items() if bias >= SAME]
        if off:
            return f"{subject}: {right} if V is exact; {', '.join(off)}{tail}"
        also = f", with {' and '.join(biases)} too" if biases else ""
        return f"{subject}: {right}, exactly{also}{tail}"
    if known["gradient_cosine"] > 1 - SAME:
        return f"{subject}: {right} in direction, its length off by {percent(known['gradient_bias'])}{tail}"
    angle = math.degrees(math.acos(known["gradient_cosine"]))
    off_by = f"off by {percent(known['gradient_bias'])} of the exact gradient, at an angle of {angle:.0f} degrees"
    return f"{subject}: biased; {off_by}{tail}"
