"""The audit of an advantage function: bias and variance of the policy gradient that it gives.

J = E[score] - beta KL of a problem, KL k1 in the reward. The gradient is sum_t A_t grad log pi_t with the run's
whitening (multiplied back by its scale) and aggregation, with respect to the logits of a tabular policy, against the
exact one; variance is that of the gradient of one response. V is exact, 0, or exact plus noise: a critic that knows,
one that has learned nothing, one in between. A function with an option `lam` or `n` is tried over it.
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
from minirlhf.streams import generator
from minirlhf.studies.audit.scene import (
    SAME,
    Batch,
    Scene,
    all_groups,
    hold,
    junked,
    representative,
    score_functions,
    weights,
)
from minirlhf.tensors import Whitening, whiten

GROUP = 4  # responses of a group
NOISE = 0.3  # standard deviation of the noisy V, score units
OVER: dict[str, tuple[float | int, ...]] = {"lam": (0.0, 0.5, 0.9, 0.95, 1.0), "n": (1, 2, 3, 4)}


def settings(built: Built) -> list[Built]:
    """The function with each value of the option that trades bias for variance, if it has one."""
    option = next((name for name in OVER if name in built.component.options), None)
    if option is None:
        return [built]
    return [built.component.build({**built.options, option: value}) for value in OVER[option]]


def audit(advantage: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """One dict a setting and V, the last of each function's with its verdict."""
    noise = torch.randn(scene.values.shape, generator=generator(0, "audit", 2), dtype=torch.float64)
    critics = {"exact": scene.values, "zero": torch.zeros_like(scene.values), "noisy": scene.values + NOISE * noise}
    if not advantage.names("values"):
        critics = {"unused": scene.values}
    if advantage.names("group"):
        batch, size = all_groups(scene.probability, GROUP), GROUP
    else:
        batch, size = representative(scene.probability), 1
    found = []
    for built in settings(advantage):
        for critic, values in critics.items():
            held = gradient(built, config, whitening, scene, batch, size, values)
            varied = {name: value for name, value in built.options.items() if name in OVER}
            found.append({"options": varied, "values": critic, **held})
    name = {"kind": "advantage", "name": advantage.component.name, "owner": advantage.component.owner}
    for row in found[:-1]:
        yield {**name, **row}
    yield {**name, **found[-1], "verdict": verdict(advantage.component.name, found)}


def gradient(
    advantage: Built, config: Config, whitening: Whitening, scene: Scene, batch: Batch, size: int, values: Tensor
) -> dict[str, float]:
    """The expected policy gradient with this function against that of J."""
    mask = scene.responses.mask[batch.index]
    known = inputs(scene, batch, values)
    found = advantage(known)
    white, scale, _ = whiten(found, mask, whitening)
    rows = score_functions(scene, batch, weights(mask, config) * white * scale)
    weight = batch.weight
    if size > 1:  # the responses of a group are not independent: the group is the sample
        rows, weight = rows.reshape(-1, size, rows.shape[1]).mean(dim=1), weight[::size]
    expected = (rows * weight.unsqueeze(1)).mean(dim=0)
    squares = float((rows.square().sum(dim=1) * weight).mean())
    held = hold(expected, right_gradient(scene, scene.log_pi), squares, size)
    return {"gradient_bias": held.bias, "gradient_cosine": held.cosine, "gradient_variance": held.variance}


def right_gradient(scene: Scene, log_pi: Tensor) -> Tensor:
    """The gradient of J with respect to the logits of a table: (S*V,)."""
    theta = log_pi.clone().requires_grad_()
    value = exact.objective(scene.graph, theta.log_softmax(dim=-1), scene.beta)
    return torch.autograd.grad(value, theta)[0].flatten()


def inputs(scene: Scene, batch: Batch, values: Tensor) -> dict[str, Tensor]:
    """All that an advantage function may name, for the rows of a batch; values (S,) a state."""
    r = scene.responses
    mask, states, ids = (x[batch.index] for x in (r.mask, r.states, r.ids))
    logprobs, ref = scene.log_pi[states, ids], scene.graph.log_ref[states, ids]
    kl = torch.where(mask, logprobs - ref, 0.0)
    scores, nothing = r.reward[batch.index], torch.zeros(len(batch), dtype=torch.float64)
    rewards = place_rewards(scores, torch.zeros_like(kl), scene.beta * kl, mask)
    return {
        "rewards": junked(rewards, mask),
        "values": junked(values[states], mask),
        "mask": mask,
        "scores": scores,
        "greedy_scores": nothing + greedy_return(scene),
        "group": batch.group,
        "logprobs": junked(logprobs, mask),
        "ref_logprobs": junked(ref, mask),
        "kl": junked(kl, mask),
        "terminated": r.terminated[batch.index],
        "bootstrap_values": nothing,
    }


def greedy_return(scene: Scene) -> float:
    """Score minus beta log(pi/ref) of the response of most likely tokens (of the first prompt)."""
    state, total, payoff = 0, 0.0, exact.shaped(scene.graph, scene.log_pi, scene.beta)
    while state >= 0:
        token = int(scene.log_pi[state].argmax())
        total, state = total + float(payoff[state, token]), int(scene.graph.child[state, token])
    return total


def verdict(name: str, found: list[dict[str, Any]]) -> str:
    """One line: what the gradient with this function is that of."""
    worst = max(found, key=lambda row: row["gradient_bias"])
    exact_critic = [row for row in found if row["values"] in ("exact", "unused")]
    known = max(exact_critic, key=lambda row: row["gradient_bias"])
    variances = [row["gradient_variance"] for row in exact_critic]
    spread = f"variance {min(variances):.3g}" + (f" to {max(variances):.3g}" if len(variances) > 1 else "")
    if known["gradient_cosine"] < 0:
        return f"{name}: points away from the objective"
    right, off = "the gradient of score - beta KL", f"{known['gradient_bias']:.0%}"
    if worst["gradient_bias"] < SAME:
        return f"{name}: {right}, exactly{', whatever V is' if len(found) > 1 else ''}; {spread}"
    if known["gradient_bias"] < SAME:
        return f"{name}: {right} if V is exact, else off by up to {worst['gradient_bias']:.0%}; {spread}"
    if known["gradient_cosine"] > 1 - SAME:
        return f"{name}: {right} in direction, its length off by {off}; {spread}"
    angle = math.degrees(math.acos(known["gradient_cosine"]))
    return f"{name}: biased; off by {off} of the exact gradient, at an angle of {angle:.0f} degrees; {spread}"
