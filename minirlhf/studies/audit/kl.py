"""Audit of a KL estimator: bias and spread of its value, and the quantity that its gradient optimises in each place.

Value: mean and standard deviation of the sum over a response, by enumeration, relative to the exact KL; and Schulman's
table (joschu.net/blog/kl-approx.html), by sampling two Gaussians, for estimators that need no whole distribution.

Gradient: that of the KL term alone (no score), in the reward (through reward-to-go), in the loss or in both, with
respect to the logits of a tabular policy, against the gradient of the KL of whole responses.

Not here: advantage functions and policy losses (advantage.py, loss.py); the table that is printed (cli/audit.py).
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
from minirlhf.rl.terms import KLInputs, estimate_kl
from minirlhf.streams import generator
from minirlhf.studies.audit.scene import (
    SAME,
    Batch,
    GradientComparison,
    Scene,
    compare_gradients,
    each_once,
    junked,
    loss_weights,
    moved,
    percent,
    representative,
    score_functions,
)
from minirlhf.tensors import Whitening, whiten

DISTANCES = (0.01, 0.1, 1.0)  # nats per sequence
SHIFTS = (0.1, 1.0)  # mu of N(mu,1) in Schulman's table: KL = mu^2 / 2
SAMPLES = 400_000
PLACES = ("reward", "loss", "both")  # values of kl.place


def audit_kl(kl: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """Yield one dict for each table and distance, then one with a verdict for each place."""
    name = {"kind": "kl", "name": kl.component.name, "owner": kl.component.owner}
    if not kl.names("log_dist") and not kl.names("ref_log_dist"):
        for shift in SHIFTS:
            yield {**name, "table": "schulman", "distance": shift**2 / 2, **gaussian_value(kl, shift)}
    noise = torch.randn(scene.log_pi.shape, generator=generator(0, "audit", 1), dtype=torch.float64)
    for distance in DISTANCES:
        near = Scene(scene.graph, moved(scene.graph, scene.graph.log_ref, noise, distance), scene.beta)
        yield {**name, "table": "sequences", "distance": distance, **kl_value(kl, near)}
    for place in PLACES:
        yield {**name, "place": place, **kl_value(kl, scene), **kl_gradient(kl, config, whitening, scene, place)}


def gaussian_value(kl: Built, shift: float) -> dict[str, float]:
    """Bias and standard deviation relative to the KL of N(0,1) from N(shift,1), each with its standard error."""
    x = torch.randn(1, SAMPLES, generator=generator(0, "schulman", 0), dtype=torch.float64)
    mask = torch.ones_like(x, dtype=torch.bool)
    logprobs, ref = -(x**2) / 2, -((x - shift) ** 2) / 2  # without -log(2 pi) / 2, which cancels in log p - log q
    relative = estimate_kl(kl, KLInputs(logprobs, logprobs, ref, mask)) / (shift**2 / 2)
    mean, std = relative.mean(), relative.std()
    # Var(s^2) = (m4 - s^4) / n, and by the delta method Var(s) = Var(s^2) / (4 s^2).
    fourth = ((relative - mean) ** 4).mean()
    spread = (fourth - std**4).clamp(min=0).sqrt() / (2 * std) / math.sqrt(SAMPLES) if std > 0 else std
    return {
        "value_bias": float(mean) - 1,
        "value_bias_se": float(std) / math.sqrt(SAMPLES),
        "value_std": float(std),
        "value_std_se": float(spread),
    }


def kl_value(kl: Built, scene: Scene) -> dict[str, float]:
    """Bias and standard deviation of the sum over a response, both relative to the exact KL per sequence."""
    with torch.no_grad():
        sums = kl_estimates(kl, scene, scene.log_pi, scene.log_pi, each_once(scene)).sum(dim=1)  # (n,)
    true = float(exact.divergence(scene.graph, scene.log_pi))
    mean = float((scene.probability * sums).sum())
    variance = float((scene.probability * (sums - mean) ** 2).sum())
    return {"value_bias": (mean - true) / true, "value_std": math.sqrt(variance) / true}


def kl_estimates(kl: Built, scene: Scene, log_pi: Tensor, old: Tensor, batch: Batch) -> Tensor:
    """Call the estimator on the rows of a batch and check its result, both as the loop does: (N,R) nats per token.

    log_pi, old (S,V): the policy, which may carry a gradient, and the one that sampled.
    """
    r = scene.responses
    mask, states, ids = r.mask[batch.index], r.states[batch.index], r.ids[batch.index]
    inputs = KLInputs(
        logprobs=junked(log_pi[states, ids], mask),
        old_logprobs=junked(old[states, ids], mask),
        ref_logprobs=junked(scene.graph.log_ref[states, ids], mask),
        mask=mask,
        log_dist=log_pi[states],
        ref_log_dist=scene.graph.log_ref[states],
    )
    return estimate_kl(kl, inputs)


def kl_gradient(kl: Built, config: Config, whitening: Whitening, scene: Scene, place: str) -> dict[str, Any]:
    """Compare the expected gradient of the KL term in this place with that of the KL per sequence; with a verdict.

    In the reward the term has no gradient of its own: it acts through reward-to-go, as a cost that multiplies grad log
    pi. In the loss it is differentiated.
    """
    theta = scene.log_pi.clone().requires_grad_()
    log_pi = theta.log_softmax(dim=-1)
    batch = representative(scene.probability)
    mask = scene.responses.mask[batch.index]
    per_token = kl_estimates(kl, scene, log_pi, scene.log_pi, batch)
    shares = loss_weights(mask, config)
    rows = torch.zeros(len(batch), theta.numel(), dtype=torch.float64)  # (N,S*V): a gradient for each row
    if place in ("reward", "both"):  # a cost here: minus the loop's reward
        cost = reward_to_go(per_token.detach(), mask, torch.zeros(len(batch), dtype=torch.float64))
        white, scale = whiten(cost, mask, whitening)
        # whiten divides by the batch's scale; multiplied back, so that gradients of all estimators compare
        rows = rows + score_functions(scene, batch, shares * white * scale)
    if place in ("loss", "both"):
        rows = rows + kl_row_gradients(kl, scene, batch, shares)
    expected = (rows * batch.weight.unsqueeze(1)).mean(dim=0)
    squares = float((rows.square().sum(dim=1) * batch.weight).mean())
    (right,) = torch.autograd.grad(exact.divergence(scene.graph, log_pi), theta, retain_graph=True)
    comparison = compare_gradients(expected, right.flatten(), squares)
    candidates = candidate_gradients(scene, theta)
    return {
        "gradient_bias": comparison.bias,
        "gradient_cosine": comparison.cosine,
        "gradient_variance": comparison.variance,
        "verdict": kl_verdict(f"{kl.component.name} in {place}", comparison, candidates),
    }


def kl_row_gradients(kl: Built, scene: Scene, batch: Batch, shares: Tensor) -> Tensor:
    """Gradient of each row's weighted sum of the estimator, with respect to the logits of the table: (N,S*V).

    shares (N,R) are the weights. Rows of the same response have the same gradient (an estimator works token by token),
    so each response is differentiated once.
    """
    each = each_once(scene)
    first = torch.zeros(len(scene.probability), dtype=torch.long).scatter(0, batch.index, torch.arange(len(batch)))
    out = []
    for row in range(len(each)):
        theta = scene.log_pi.clone().requires_grad_()
        one = Batch(each.index[row : row + 1], each.weight[row : row + 1], each.group[row : row + 1])
        total = (shares[first[row]] * kl_estimates(kl, scene, theta.log_softmax(dim=-1), scene.log_pi, one)).sum()
        gradient = torch.autograd.grad(total, theta)[0] if total.requires_grad else torch.zeros_like(theta)
        out.append(gradient.flatten())
    return torch.stack(out)[batch.index]


def candidate_gradients(scene: Scene, theta: Tensor) -> dict[str, Tensor]:
    """Gradients that a KL term may turn out to have, each (S*V,), under a description of what it then optimises.

    The visits of a state are constants here: a term in the loss leaves out how a token changes the states behind it.
    """
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
    gradients = {name: torch.autograd.grad(t, theta, retain_graph=True)[0].flatten() for name, t in targets.items()}
    whole, own, _ = gradients.values()
    gradients["only the KL of later tokens; none of the token itself, so nothing for one-token responses"] = whole - own
    return gradients


def kl_verdict(subject: str, comparison: GradientComparison, candidates: dict[str, Tensor]) -> str:
    """One line that says what the term optimises: the candidate whose gradient it has, or the angle to the KL's."""
    whole = next(iter(candidates.values()))
    if float(comparison.gradient.norm() / whole.norm()) < SAME:
        return f"{subject}: nothing; its gradient is 0 in expectation (off by {percent(comparison.bias)})"
    for what, candidate in candidates.items():
        if float((comparison.gradient - candidate).norm() / whole.norm()) < SAME:
            return f"{subject}: {what}" + ("" if candidate is whole else f" (off by {percent(comparison.bias)})")
    angle = math.degrees(math.acos(comparison.cosine))
    away = "; it points away from the KL" if comparison.cosine < 0 else ""
    off = f"off by {percent(comparison.bias)}, at an angle of {angle:.0f} degrees"
    return f"{subject}: no KL that the audit knows; {off}{away}"
