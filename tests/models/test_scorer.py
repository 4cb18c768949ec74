"""Reward model's head: one score a text, read at its last token, the same in any batch."""

import math

import pytest
import torch

from minirlhf.models.scorer import Scorer
from minirlhf.models.transformer import Transformer, TransformerConfig
from tests.helpers import CONFIG, seeded, small_trunk

pytestmark = pytest.mark.usefixtures("double")
ROWS = [[1, 5, 6, 2], [1, 7], [1, 3, 4, 5, 6, 7, 8, 2], [1]]


def scorer(seed=0) -> Scorer:
    return Scorer(small_trunk(seed)).initialise(seeded(1))


def test_a_score_is_the_head_on_the_last_hidden_state():
    model = scorer()
    found = model(ROWS)
    for row, score in zip(ROWS, found, strict=True):
        hidden = model.model(torch.tensor([row]))[0, -1].detach()
        assert score.item() == pytest.approx(float(hidden @ model.score.weight[0].detach()), abs=1e-12)


def test_the_company_and_the_order_of_a_text_change_nothing():
    model = scorer()
    alone = torch.cat([model([row]) for row in ROWS])
    assert torch.allclose(model(ROWS), alone, atol=1e-12)
    many = ROWS * 40  # several batches, sorted by length inside
    assert torch.allclose(model.scores(many), alone.repeat(40), atol=1e-12)


def test_scores_are_normalised_by_what_is_stored():
    model = scorer()
    plain = model.scores(ROWS, normalised=False)
    model.mean.fill_(2.0)
    model.std.fill_(4.0)
    assert torch.allclose(model.scores(ROWS), (plain - 2) / 4)
    assert torch.equal(model.scores(ROWS, normalised=False), plain)


def test_the_head_begins_at_one_over_the_root_of_width_and_one():
    wide = TransformerConfig(**{**CONFIG.__dict__, "hidden_size": 4096, "num_attention_heads": 4})
    model = Scorer.__new__(Scorer)
    torch.nn.Module.__init__(model)
    model.score = torch.nn.Linear(wide.hidden_size, 1, bias=False)
    model.initialise(seeded())
    # 4096 draws give a standard deviation to 1 / sqrt(2 x 4096) = 1.1 %.
    assert float(model.score.weight.detach().std()) == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert isinstance(scorer().model, Transformer)
