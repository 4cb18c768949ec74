"""The audit of a KL estimator: its value at several distances, and what it optimises in each place.

Value: E and standard deviation of the sum over a response, by enumeration, relative to the exact KL; and Schulman's
table (joschu.net/blog/kl-approx.html), one sample of a Gaussian at a time, for estimators that need no distribution.

Gradient: that of beta KL alone (no score), in the reward (through reward-to-go), in the loss, or in both, with respect
to the logits of a tabular policy, against the gradient of the KL of whole responses.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin.advantages import reward_to_go
from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.exact import graph as exact
from minirlhf.streams import generator
from minirlhf.studies.audit.scene import (
    SAME,
    Batch,
    Scene,
    each_once,
    hold,
    junked,
    moved,
    representative,
    score_functions,
    weights,
)
from minirlhf.tensors import Whitening, whiten

DISTANCES = (0.01, 0.1, 1.0)  # nats per sequence
SHIFTS = (0.1, 1.0)  # of the mean, in Schulman's table
SAMPLES = 400_000
PLACES = ("reward", "loss", "both")


def audit(kl: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """One dict a distance and table, then one a place with its verdict."""
    name = {"kind": "kl", "name": kl.component.name, "owner": kl.component.owner}
    if not kl.names("log_dist") and not kl.names("ref_log_dist"):
        for shift in SHIFTS:
            yield {**name, "table": "schulman", "distance": shift**2 / 2, **gaussian(kl, shift)}
    noise = torch.randn(scene.log_pi.shape, generator=generator(0, "audit", 1), dtype=torch.float64)
    for distance in DISTANCES:
        near = Scene(scene.graph, moved(scene.graph, scene.graph.log_ref, noise, distance), scene.beta)
        yield {**name, "table": "sequences", "distance": distance, **value(kl, near)}
    for place in PLACES:
        yield {**name, "place": place, **value(kl, scene), **gradient(kl, config, whitening, scene, place)}


def gaussian(kl: Built, shift: float) -> dict[str, float]:
    """Bias and standard deviation over the KL, with their standard errors, of x ~ N(0,1) against N(shift,1)."""
    x = torch.randn(1, SAMPLES, generator=generator(0, "schulman", 0), dtype=torch.float64)
    mask = torch.ones_like(x, dtype=torch.bool)
    logprobs, ref = -(x**2) / 2, -((x - shift) ** 2) / 2
    known = {"logprobs": logprobs, "old_logprobs": logprobs, "ref_logprobs": ref, "mask": mask}
    found = kl(known) / (shift**2 / 2)
    mean, std = found.mean(), found.std()
    fourth = ((found - mean) ** 4).mean()  # Var of the sample variance is (m4 - s^4) / n; of its root that over 4 s^2
    spread = (fourth - std**4).clamp(min=0).sqrt() / (2 * std) / math.sqrt(SAMPLES) if std > 0 else std
    return {
        "value_bias": float(mean) - 1,
        "value_bias_se": float(std) / math.sqrt(SAMPLES),
        "value_std": float(std),
        "value_std_se": float(spread),
    }


def value(kl: Built, scene: Scene) -> dict[str, float]:
    """Bias and standard deviation of the sum over a response, both over the exact KL per sequence."""
    with torch.no_grad():
        sums = estimate(kl, scene, scene.log_pi, scene.log_pi, Batch(*[torch.arange(len(scene.probability))] * 3)).sum(
            1
        )
    true = float(exact.divergence(scene.graph, scene.log_pi))
    mean = float((scene.probability * sums).sum())
    variance = float((scene.probability * (sums - mean) ** 2).sum())
    return {"value_bias": (mean - true) / true, "value_std": math.sqrt(variance) / true}


def estimate(kl: Built, scene: Scene, log_pi: Tensor, old: Tensor, batch: Batch) -> Tensor:
    """What the estimator gives for the rows of a batch, called and checked as the loop does it: (N,R)."""
    r = scene.responses
    mask, states, ids = r.mask[batch.index], r.states[batch.index], r.ids[batch.index]
    known = {
        "logprobs": junked(log_pi[states, ids], mask),
        "old_logprobs": junked(old[states, ids], mask),
        "ref_logprobs": junked(scene.graph.log_ref[states, ids], mask),
        "log_dist": log_pi[states],
        "ref_log_dist": scene.graph.log_ref[states],
        "mask": mask,
    }
    found: Tensor = kl(known)
    return found


def gradient(kl: Built, config: Config, whitening: Whitening, scene: Scene, place: str) -> dict[str, Any]:
    """The expected gradient of the KL term in this place against that of the KL per sequence, and the verdict."""
    theta = scene.log_pi.clone().requires_grad_()
    log_pi = theta.log_softmax(dim=-1)
    batch = representative(scene.probability)
    mask = scene.responses.mask[batch.index]
    found = estimate(kl, scene, log_pi, scene.log_pi, batch)
    shares = weights(mask, config)
    rows = torch.zeros(len(batch), theta.numel(), dtype=torch.float64)
    if place in ("reward", "both"):  # a cost here: minus what the loop calls a reward
        cost = reward_to_go(found.detach(), mask, torch.zeros(len(batch), dtype=torch.float64))
        white, scale, _ = whiten(cost, mask, whitening)
        rows = rows + score_functions(scene, batch, shares * white * scale)
    if place in ("loss", "both"):
        rows = rows + row_gradients(kl, scene, batch, shares)
    expected = (rows * batch.weight.unsqueeze(1)).mean(dim=0)
    squares = float((rows.square().sum(dim=1) * batch.weight).mean())
    (right,) = torch.autograd.grad(exact.divergence(scene.graph, log_pi), theta, retain_graph=True)
    held = hold(expected, right.flatten(), squares)
    parts = known_gradients(scene, theta)
    return {
        "gradient_bias": held.bias,
        "gradient_cosine": held.cosine,
        "gradient_variance": held.variance,
        "verdict": verdict(kl.component.name, place, held.gradient, parts, held.bias, held.cosine),
    }


def row_gradients(kl: Built, scene: Scene, batch: Batch, shares: Tensor) -> Tensor:
    """The gradient of each row's sum of the estimator with respect to the logits of the table: (N,S*V).

    Rows of one response have one gradient (an estimator works token by token), so each response is differentiated once.
    """
    each = each_once(scene)
    first = torch.zeros(len(scene.probability), dtype=torch.long).scatter(0, batch.index, torch.arange(len(batch)))
    out = []
    for row in range(len(each)):
        theta = scene.log_pi.clone().requires_grad_()
        one = Batch(each.index[row : row + 1], each.weight[row : row + 1], each.group[row : row + 1])
        total = (shares[first[row]] * estimate(kl, scene, theta.log_softmax(dim=-1), scene.log_pi, one)).sum()
        found = torch.autograd.grad(total, theta)[0] if total.requires_grad else torch.zeros_like(theta)
        out.append(found.flatten())
    return torch.stack(out)[batch.index]


def known_gradients(scene: Scene, theta: Tensor) -> dict[str, Tensor]:
    """The gradients that a term may turn out to have, by what it then optimises."""
    log_pi, graph = theta.log_softmax(dim=-1), scene.graph
    visits = exact.occupancy(graph, scene.log_pi).unsqueeze(1)
    targets = {
        "the KL of the whole response, exactly": exact.divergence(graph, log_pi),
        "each token's KL given those before it; how a token changes later KL is left out": (
            visits * log_pi.exp() * (log_pi - graph.log_ref)
        ).sum(),
        "each token's KL in the other direction, KL(reference, policy); later KL is left out": (
            visits * graph.log_ref.exp() * (graph.log_ref - log_pi)
        ).sum(),
    }
    found = {name: torch.autograd.grad(t, theta, retain_graph=True)[0].flatten() for name, t in targets.items()}
    whole, now, _ = found.values()
    found["only the KL of later tokens; none of the token itself, so nothing for one-token responses"] = whole - now
    return found


def verdict(name: str, place: str, gradient: Tensor, parts: dict[str, Tensor], bias: float, cosine: float) -> str:
    """One line: what this estimator, in this place, optimises."""
    whole = next(iter(parts.values()))
    if float(gradient.norm() / whole.norm()) < SAME:
        return f"{name} in {place}: nothing; its gradient is 0 in expectation (off by {bias:.0%})"
    for what, part in parts.items():
        if float((gradient - part).norm() / whole.norm()) < SAME:
            return f"{name} in {place}: {what}" + ("" if part is whole else f" (off by {bias:.0%})")
    angle = math.degrees(math.acos(cosine))
    away = "; it points away from the KL" if cosine < 0 else ""
    return f"{name} in {place}: no KL; off by {bias:.0%}, at an angle of {angle:.0f} degrees{away}"
