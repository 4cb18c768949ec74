"""Batches that represent a policy, and gradients of their rows, against enumeration written out."""

import itertools
import math

import pytest
import torch

from minirlhf.exact import graph as exact
from minirlhf.studies.audit.scene import (
    Batch,
    Scene,
    all_groups,
    compare_gradients,
    each_once,
    moved,
    representative,
    score_functions,
)

SCENE = Scene.of()


def test_a_batch_that_stands_for_a_policy_has_its_expectations():
    chances = torch.tensor([0.5, 0.3, 0.199, 0.001], dtype=torch.float64)
    batch = representative(chances)
    values = torch.tensor([1.0, -2.0, 5.0, 700.0], dtype=torch.float64)
    found, right = (batch.weight * values[batch.index]).mean(), (chances * values).sum()
    assert float(found) == pytest.approx(float(right), abs=1e-12)
    assert float(batch.weight.mean()) == pytest.approx(1, abs=1e-12)
    # counts are whole numbers of about 1,024 rows
    shares = torch.bincount(batch.index) / len(batch)
    assert torch.allclose(shares.double(), chances, atol=1e-3)


def test_all_groups_of_three_are_all_ordered_draws_of_three():
    chances = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    batch = all_groups(chances, 3)
    values = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    by_hand = sum(
        math.prod(float(chances[i]) for i in draw) * max(float(values[i]) for i in draw) * len(set(draw))
        for draw in itertools.product(range(3), repeat=3)
    )
    rows = batch.index.reshape(-1, 3)
    found = values[rows].max(dim=1).values * torch.tensor([len(set(r)) for r in rows.tolist()])
    assert len(rows) == 10
    assert float((batch.weight[::3] * found).mean()) == pytest.approx(by_hand, abs=1e-12)
    assert torch.equal(batch.group, torch.arange(10).repeat_interleave(3))


def test_moved_goes_as_far_as_it_says():
    graph = exact.build_graph(SCENE.graph.problem)
    direction = torch.ones_like(graph.log_ref).cumsum(1)
    for distance in (0.001, 0.1, 0.5):
        table = moved(graph, graph.log_ref, direction, distance)
        assert float(exact.divergence(graph, table)) == pytest.approx(distance, rel=1e-6)
    assert torch.equal(moved(graph, graph.log_ref, direction, 0.0), graph.log_ref)
    assert float(exact.divergence(SCENE.graph, SCENE.log_pi)) == pytest.approx(0.4, rel=1e-6)


def test_score_functions_are_the_gradients_of_log_probabilities():
    batch = each_once(SCENE)
    r = SCENE.responses
    factors = torch.linspace(-1, 2, r.mask.numel(), dtype=torch.float64).view(r.mask.shape)
    found = score_functions(SCENE, batch, factors)
    for row in (0, 7, 30):
        theta = SCENE.log_pi.clone().requires_grad_()
        (r.taken(theta.log_softmax(dim=-1))[row] * factors[row]).sum().backward()
        assert torch.allclose(found[row], theta.grad.flatten(), atol=1e-12)


def test_a_gradient_is_held_against_another():
    right = torch.tensor([3.0, 4.0])
    twice = compare_gradients(2 * right, right, squares=175.0)
    assert (twice.bias, twice.cosine, twice.variance) == (pytest.approx(1), pytest.approx(1), pytest.approx(3))
    assert compare_gradients(-right, right, 25.0).cosine == pytest.approx(-1)
    assert compare_gradients(torch.tensor([-4.0, 3.0]), right, 25.0).cosine == pytest.approx(0)
    nothing = compare_gradients(torch.zeros(2), right, 0.0)
    assert (nothing.bias, nothing.cosine) == (1.0, 0.0)
    group = compare_gradients(right, right, squares=50.0, size=4)  # a group of four is one sample
    assert group.variance == pytest.approx(4)


def test_every_batch_has_as_many_weights_as_rows():
    for batch in (each_once(SCENE), representative(SCENE.probability), all_groups(SCENE.probability, 2)):
        assert isinstance(batch, Batch)
        assert len(batch.index) == len(batch.weight) == len(batch.group) == len(batch)
