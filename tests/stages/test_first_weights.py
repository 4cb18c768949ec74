"""First weights of a base: counts by hand, factors of a matrix that is known, and what is left random.

Counts and factors are in float32: their tolerances are the rounding of sums of a few numbers near 1, and of dividing by
small factors. Where subspace iteration has not ended, 4 rounds leave less than (0.1 / 3)^4 of an axis.
"""

import math

import pytest
import torch

from minirlhf.models.families import TransformerConfig
from minirlhf.models.transformer import Transformer
from minirlhf.stages import first_weights
from minirlhf.stages.first_weights import COUNTED, association, factors, prepare_weights
from tests.helpers import seeded

# Tokens 0 and 1 in the first two rows, 2 and 3 in the last; 0 twice in a row counts once.
ROWS = [[0, 1, 0], [1, 0], [2, 0], [3, 2]]
SIZES = TransformerConfig(
    vocab_size=7,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=16,
)


def test_the_association_of_tokens_by_hand():
    """N = 4 rows; 0 stands in three of them, 1 and 2 in two, 3 in one, 6 in none."""
    found = association(ROWS, torch.tensor([0, 1, 2, 3, 6]))
    expected = torch.zeros(5, 5)
    for a, b, both, chance in (
        (0, 1, 2, 3 * 2 / 4), (0, 2, 1, 3 * 2 / 4), (0, 3, 0, 3 * 1 / 4),
        (1, 2, 0, 2 * 2 / 4), (1, 3, 0, 2 * 1 / 4), (2, 3, 1, 2 * 1 / 4),
    ):  # fmt: skip
        expected[a, b] = expected[b, a] = math.log((both + 1) / (chance + 1))
    torch.testing.assert_close(found, expected)


def test_the_association_is_that_of_the_tokens_in_the_order_given_and_of_no_other():
    everything, order = association(ROWS, torch.arange(4)), torch.tensor([2, 0])
    assert torch.equal(association(ROWS, order), everything[order][:, order])


def test_rows_in_several_parts_are_counted_as_in_one():
    """1,500 rows, of which 1,200 hold 0 and 1 and the rest 0 alone: N_0 = N, so that no pair with 0 is above chance."""
    found = association([[0, 1]] * 1200 + [[0]] * 300, torch.tensor([0, 1]))
    assert found[0, 1] == pytest.approx(0.0, abs=1e-6)
    found = association([[0, 1]] * 1200 + [[2]] * 300, torch.tensor([0, 1, 2]))
    assert found[0, 1] == pytest.approx(math.log(1201 / 961))  # 1200^2 / 1500 = 960
    assert found[0, 2] == pytest.approx(math.log(1 / 241))  # 1200 300 / 1500 = 240


def test_factors_give_the_largest_eigenvalues_without_the_negative_ones():
    """Eigenvalues 5, 2, 1 and -3 along known axes: all four without the -3. Of 5, -3 and two small ones the largest two
    are 5 and -3, and the second column is 0."""
    axes = torch.linalg.qr(torch.randn(4, 4, generator=seeded(3))).Q
    matrix = axes @ torch.diag(torch.tensor([5.0, 2.0, 1.0, -3.0])) @ axes.T
    every = factors(matrix, 4, seeded())
    torch.testing.assert_close(every @ every.T, axes[:, :3] @ torch.diag(torch.tensor([5.0, 2.0, 1.0])) @ axes[:, :3].T)
    two = factors(axes @ torch.diag(torch.tensor([5.0, 0.1, 0.05, -3.0])) @ axes.T, 2, seeded())
    torch.testing.assert_close(two @ two.T, 5 * torch.outer(axes[:, 0], axes[:, 0]), atol=1e-3, rtol=1e-3)
    assert not two[:, 0].any()  # eigh sorts: the -3 comes first
    wide = factors(matrix, 6, seeded())
    assert wide.shape == (4, 6)
    torch.testing.assert_close(wide @ wide.T, every @ every.T)


def test_factors_of_a_low_rank_are_found_by_a_few_rounds():
    axes = torch.linalg.qr(torch.randn(50, 3, generator=seeded(3))).Q
    matrix = axes @ torch.diag(torch.tensor([9.0, 4.0, 1.0])) @ axes.T
    found = factors(matrix, 5, seeded())
    torch.testing.assert_close(found @ found.T, matrix, atol=1e-5, rtol=1e-4)


def test_blocks_begin_without_a_say_and_attention_near_the_mean():
    before = Transformer(SIZES).initialise(seeded())
    after = prepare_weights(Transformer(SIZES).initialise(seeded()), ROWS, seeded(1))
    old = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not parameter.any()
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            assert torch.equal(parameter, old[name] / 2)
        elif name == "norm.weight":
            torch.testing.assert_close(parameter, torch.full((8,), 8**-0.5))
        elif name != "embed_tokens.weight":
            assert torch.equal(parameter, old[name])
    ids = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(after(ids), after.norm(after.embed_tokens(ids)))


def test_the_embedding_is_a_mixture_of_noise_and_counts_of_the_same_size():
    """Undone by hand: what is left after the random part is a multiple of the factors, of the old mean square."""
    before = Transformer(SIZES).initialise(seeded()).embed_tokens.weight.detach()
    after = prepare_weights(Transformer(SIZES).initialise(seeded()), ROWS, seeded(1)).embed_tokens.weight.detach()
    counted = (after - math.sqrt(1 - COUNTED) * before) / math.sqrt(COUNTED)
    assert counted.square().mean().sqrt() == pytest.approx(before.square().mean().sqrt().item(), rel=1e-4)
    likeness = counted @ counted.T
    table = association(ROWS, torch.arange(7))
    axes = torch.linalg.eigh(table)
    positive = axes.eigenvectors @ torch.diag(axes.eigenvalues.clamp(min=0)) @ axes.eigenvectors.T
    scale = likeness.trace() / positive.trace()
    torch.testing.assert_close(likeness, scale * positive, atol=1e-4, rtol=1e-3)


def test_rare_tokens_of_a_large_vocabulary_stay_random(monkeypatch):
    monkeypatch.setattr(first_weights, "MOST_TOKENS", 3)  # 0 stands four times in ROWS, 1 and 2 twice
    before = Transformer(SIZES).initialise(seeded()).embed_tokens.weight.detach()
    after = prepare_weights(Transformer(SIZES).initialise(seeded()), ROWS, seeded(1)).embed_tokens.weight.detach()
    assert torch.equal(after[3:], before[3:])
    assert (after[:3] != before[:3]).all()


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[4]], [[0], [0]]])
def test_a_corpus_that_tells_nothing_leaves_the_embedding_as_it_was(rows):
    """One document, or one token: every pair is as frequent as by chance."""
    before = Transformer(SIZES).initialise(seeded()).embed_tokens.weight.detach()
    assert torch.equal(
        prepare_weights(Transformer(SIZES).initialise(seeded()), rows, seeded(1)).embed_tokens.weight, before
    )


def test_a_token_that_never_occurs_keeps_its_random_part():
    """Of 7 tokens 4, 5 and 6 stand in no row: their embeddings are sqrt(1 - COUNTED) of what they were."""
    before = Transformer(SIZES).initialise(seeded()).embed_tokens.weight.detach()
    after = prepare_weights(Transformer(SIZES).initialise(seeded()), ROWS, seeded(1)).embed_tokens.weight.detach()
    torch.testing.assert_close(after[4:], math.sqrt(1 - COUNTED) * before[4:], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(after[:4], math.sqrt(1 - COUNTED) * before[:4], atol=1e-3)
