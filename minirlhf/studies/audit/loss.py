"""The audit of a policy loss: its first gradient of a rollout, and how it goes wrong as the policy moves on.

Responses come from an old policy, advantages are right for it (reward-to-go minus its V). The policy has moved from it
along the gradient of J to several distances KL(policy, old). The gradient of the loss there, with the run's whitening
(multiplied back) and aggregation, is held against the exact gradient of J there.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin.advantages import mc
from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.studies.audit.advantage import inputs, right_gradient
from minirlhf.studies.audit.scene import SAME, Scene, hold, junked, moved, representative, weights
from minirlhf.tensors import Whitening, whiten

DRIFTS = (0.0, 0.003, 0.01, 0.03, 0.1)  # nats per sequence between the policy and the one that sampled


def audit(loss: Built, config: Config, whitening: Whitening, scene: Scene) -> Iterator[dict[str, Any]]:
    """One dict a drift, the last with the verdict."""
    name = {"kind": "loss", "name": loss.component.name, "owner": loss.component.owner}
    ascent = right_gradient(scene, scene.log_pi).reshape(scene.log_pi.shape)
    found = []
    for drift in DRIFTS:
        table = moved(scene.graph, scene.log_pi, ascent, drift)
        found.append({"distance": drift, **gradient(loss, config, whitening, scene, table)})
    for row in found[:-1]:
        yield {**name, **row}
    yield {**name, **found[-1], "verdict": verdict(loss.component.name, found)}


def gradient(loss: Built, config: Config, whitening: Whitening, scene: Scene, table: Tensor) -> dict[str, float]:
    """Minus the expected gradient of the loss at the policy `table`, over responses of the scene's policy."""
    batch = representative(scene.probability)
    r = scene.responses
    mask, states, ids = (x[batch.index] for x in (r.mask, r.states, r.ids))
    known = inputs(scene, batch, scene.values)
    advantages = mc(known["rewards"], known["values"], mask, known["bootstrap_values"])
    white, scale, _ = whiten(advantages, mask, whitening)
    theta = table.clone().requires_grad_()
    given = {
        "logprobs": junked(theta.log_softmax(dim=-1)[states, ids], mask),
        "old_logprobs": known["logprobs"],
        "ref_logprobs": known["ref_logprobs"],
        "advantages": junked(white, mask),
        "mask": mask,
        "beta": config.loss.penalty,
    }
    surrogate, _ = loss(given)
    weight = batch.weight.unsqueeze(1) / len(batch)
    total = (weight * weights(mask, config) * surrogate).sum() * scale
    found = -torch.autograd.grad(total, theta)[0].flatten()
    held = hold(found, right_gradient(scene, table), 0.0)
    return {"gradient_bias": held.bias, "gradient_cosine": held.cosine}


def verdict(name: str, found: list[dict[str, Any]]) -> str:
    """One line: what the loss follows at first, and how far off it is later."""
    first, last = found[0], found[-1]
    angle = math.degrees(math.acos(last["gradient_cosine"]))
    later = (
        f"{last['distance']:g} nats from the policy that sampled it is off by {last['gradient_bias']:.0%}, "
        f"at an angle of {angle:.0f} degrees"
    )
    if first["gradient_bias"] < SAME:
        return f"{name}: at first the gradient of score - beta KL, exactly; {later}"
    if first["gradient_cosine"] < 0:
        return f"{name}: points away from the objective"
    return f"{name}: biased from the first update on, by {first['gradient_bias']:.0%}; {later}"
