"""Audit of a policy loss: its gradient in the first update of a rollout, and its error as the policy moves on.

Responses come from an old policy, and the advantages are exact for it (reward-to-go minus its V). The policy has moved
from the old one along the gradient of J, to several distances KL(policy, old). The gradient of the loss there, with the
run's whitening (its scale multiplied back) and aggregation, is compared with the exact gradient of J there.

A loss such as the clip holds tokens back: it has no gradient for them, on purpose. That is no error of the gradient, so
it is given by itself, as a share of the tokens, and the bias is that of the gradient with the tokens held back added by
their importance ratio (N9). Before the policy has moved, nothing may be held back.

Not here: variance, which comes from the advantage function (advantage.py); the table that is printed (cli/audit.py).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin.advantages import mc
from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.rl.terms import LossInputs, compute_loss
from minirlhf.studies.audit.advantage import advantage_inputs, objective_gradient
from minirlhf.studies.audit.scene import (
    SAME,
    Scene,
    compare_gradients,
    junked,
    loss_weights,
    moved,
    percent,
    representative,
)
from minirlhf.tensors import Whitening, importance_ratio, masked_sum, whiten

DRIFTS = (0.0, 0.003, 0.01, 0.03, 0.1)  # nats per sequence between the policy and the one that sampled


def audit_loss(loss: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """Yield one dict for each drift; the last one holds the verdict."""
    name = {"kind": "loss", "name": loss.component.name, "owner": loss.component.owner}
    ascent = objective_gradient(scene, scene.log_pi).reshape(scene.log_pi.shape)
    rows = []
    for drift in DRIFTS:
        table = moved(scene.graph, scene.log_pi, ascent, drift)
        rows.append({"distance": drift, **loss_gradient(loss, config, whitening, scene, table)})
    for row in rows[:-1]:
        yield {**name, **row}
    yield {**name, **rows[-1], "verdict": loss_verdict(loss.component.name, rows)}


def loss_gradient(loss: Built, config: Config, whitening: Whitening, scene: Scene, table: Tensor) -> dict[str, float]:
    """Compare minus the expected gradient of the loss at the policy `table` (S,V) with that of J there.

    The expectation is over responses of the scene's policy, which is the old one. held_back: share of the tokens for
    which the loss has no gradient although they have an advantage; 0 where `table` is the old policy.
    """
    batch = representative(scene.probability)
    r = scene.responses
    mask, states, ids = (x[batch.index] for x in (r.mask, r.states, r.ids))
    known = advantage_inputs(scene, batch, scene.values)
    advantages = mc(known.rewards, known.values, mask, known.bootstrap_values)
    white, scale = whiten(advantages, mask, whitening)
    theta = table.clone().requires_grad_()
    taken = junked(theta.log_softmax(dim=-1)[states, ids], mask)
    inputs = LossInputs(
        logprobs=taken,
        old_logprobs=known.logprobs,
        ref_logprobs=known.ref_logprobs,
        advantages=junked(white, mask),
        mask=mask,
        beta=config.loss.penalty,
    )
    surrogate, _ = compute_loss(loss, inputs)
    weight = batch.weight.unsqueeze(1) / len(batch) * loss_weights(mask, config)
    (pull,) = torch.autograd.grad(surrogate.sum(), taken, retain_graph=True, allow_unused=True)
    idle = torch.ones_like(mask) if pull is None else pull == 0
    moves = not torch.equal(table, scene.log_pi)
    held = mask & (white != 0) & idle & moves
    given_back = torch.where(held, -white * importance_ratio(taken, known.logprobs), 0.0)
    # whiten divided by the batch's scale; multiplied back, so that the length of the gradient is that of J's
    total = (weight * (surrogate + given_back)).sum() * scale
    ascent = -torch.autograd.grad(total, theta)[0].flatten()  # a loss is minimised: minus its gradient climbs J
    comparison = compare_gradients(ascent, objective_gradient(scene, table), 0.0)
    share = float(masked_sum(weight, held) / masked_sum(weight, mask))
    return {"gradient_bias": comparison.bias, "gradient_cosine": comparison.cosine, "held_back": share}


def loss_verdict(name: str, rows: list[dict[str, Any]]) -> str:
    """One line that gives the bias of the first update, and share held back and bias at the largest distance."""
    first, last = rows[0], rows[-1]
    angle = math.degrees(math.acos(last["gradient_cosine"]))
    held = f"holds back {percent(last['held_back'])} of the tokens and, these given back, " if last["held_back"] else ""
    later = (
        f"{last['distance']:g} nats from the policy that sampled, it {held}is off by {percent(last['gradient_bias'])}, "
        f"at an angle of {angle:.0f} degrees"
    )
    if first["gradient_bias"] < SAME:
        return f"{name}: at first the gradient of score - beta KL, exactly; {later}"
    if first["gradient_cosine"] < 0:
        return f"{name}: points away from the objective"
    return f"{name}: biased from the first update on, by {percent(first['gradient_bias'])}; {later}"
