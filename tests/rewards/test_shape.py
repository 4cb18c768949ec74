"""From scores to rewards: the order of the rules, each rule by hand, and where the score lands."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.config.schema import PPOConfig, TruncationConfig
from minirlhf.rewards.shape import Scores, place_rewards, shape_scores
from minirlhf.tensors import Moments
from tests.helpers import random_rollout

pytestmark = pytest.mark.usefixtures("double")

NONE_YET = Moments(0.0, 0.0, 0)
KEEP = TruncationConfig()
NEXT = torch.tensor([10.0, 20.0, 30.0, 40.0])
ENDED = torch.tensor([True, False, True, False])  # rows 1 and 3 are cut


def rollout():
    return replace(random_rollout(4), terminated=ENDED)


def scored(scores, valid=(True,) * 4):
    return Scores(torch.tensor(scores), torch.tensor(valid), torch.zeros(4, 6))


def shape(scores, valid=(True,) * 4, running=NONE_YET, truncation=KEEP, **ppo):
    return shape_scores(scored(scores, valid), rollout(), NEXT, running, PPOConfig(**ppo), truncation)


def test_without_rules_scores_pass_untouched():
    out = shape([1.0, -2.0, 3.0, 0.5])
    assert out.scores.tolist() == [1.0, -2.0, 3.0, 0.5]
    assert torch.equal(out.rollout.mask, rollout().mask)
    assert out.bootstrap.tolist() == [0, 0, 0, 0]
    assert out.running == NONE_YET


def test_normalisation_uses_all_scores_so_far_and_this_batch_by_hand():
    """1, 2, 4 now: mean 7/3, unbiased variance 7/3. Then 5, 8, 10 beside them: sum 30 of 6, squares 210."""
    first = shape([1.0, 2.0, 99.0, 4.0], valid=(True, True, False, True), score_normalize=True)
    assert first.running == Moments(7.0, 21.0, 3)  # the unscored 99 is in neither
    std = math.sqrt(7 / 3)
    assert first.scores.tolist() == pytest.approx([(1 - 7 / 3) / std, (2 - 7 / 3) / std, 0, (4 - 7 / 3) / std])
    second = shape([5.0, 8.0, 10.0, 0.0], (True, True, True, False), first.running, score_normalize=True)
    assert second.running == Moments(30.0, 210.0, 6)
    std = math.sqrt((210 - 30 * 30 / 6) / 5)
    assert second.scores.tolist() == pytest.approx([0, 3 / std, 5 / std, 0])


@pytest.mark.parametrize("scores", [[7.0, 7.0, 7.0, 7.0], [7.0, 0.0, 0.0, 0.0]])
def test_normalising_equal_scores_or_a_single_one_gives_zero_and_no_nan(scores):
    valid = (True,) * 4 if scores[1] else (True, False, False, False)
    assert shape(scores, valid, score_normalize=True).scores.tolist() == [0, 0, 0, 0]


def with_tokens(tokens, totals, **rules):
    given = replace(scored(totals), token_rewards=torch.tensor(tokens))
    return shape_scores(
        given, rollout(), NEXT, NONE_YET, PPOConfig(**rules.pop("ppo", {})), rules.get("truncation", KEEP)
    )


def test_token_rewards_are_scaled_as_their_score_is():
    """Scores 2, 4, 6, 8 have std sqrt(20/3) = 2.58 and mean 5. Row 3 is all of tokens: 8 becomes (8 - 5) / 2.58 = 1.16;
    its tokens are divided by 2.58. A clip to 1 then multiplies score and tokens by 1 / 1.16."""
    tokens = [[0.0] * 6, [1.0, 3.0, 0, 0, 0, 0], [0.0] * 6, [5.0, 3.0, 0, 0, 0, 0]]
    std = math.sqrt(20 / 3)
    out = with_tokens(tokens, [2.0, 4.0, 6.0, 8.0], ppo={"score_normalize": True})
    assert out.token_rewards[3, :2].tolist() == pytest.approx([5 / std, 3 / std])
    cut = with_tokens(tokens, [2.0, 4.0, 6.0, 8.0], ppo={"score_normalize": True, "score_clip": 1.0})
    assert cut.scores.tolist() == pytest.approx([-1, -1 / std, 1 / std, 1])
    assert cut.token_rewards[3, :2].tolist() == pytest.approx([5 / 3, 3 / 3])  # 5 / std x 1 / (3 / std)
    assert cut.token_rewards[1, :2].tolist() == pytest.approx([1 / std, 3 / std])  # not clipped
    zero = with_tokens(tokens, [0.0, 4.0, 0.0, 8.0], ppo={"score_clip": 4.0})
    assert zero.token_rewards[:, 0].tolist() == [0, 1, 0, 2.5]


def test_a_cut_response_that_bootstraps_keeps_its_token_rewards_and_no_more_of_its_score():
    """Cut rows 1 and 3 have 4 = 1 + 3 and 9 = 5 + 3 + 1 behind the mask's end or for the whole; V stands for the 1."""
    tokens = [[0.0] * 6, [1.0, 0, 0, 0, 0, 0], [0.0] * 6, [5.0, 0, 0, 0, 0, 0]]
    out = with_tokens(tokens, [2.0, 4.0, 6.0, 9.0], truncation=TruncationConfig(rule="bootstrap"))
    assert out.scores.tolist() == [2, 1, 6, 5]
    rewards = place_rewards(out.scores, out.token_rewards, torch.zeros(4, 6), out.rollout.mask)
    assert rewards[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert rewards.sum(dim=1).tolist() == [2, 1, 6, 5]


def test_the_clip():
    assert shape([5.0, -5.0, 0.5, -0.5], score_clip=1.5).scores.tolist() == [1.5, -1.5, 0.5, -0.5]


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("keep", None, [1.0, 2.0, 3.0, 4.0]),
        ("penalty", 0.5, [1.0, 1.5, 3.0, 3.5]),  # subtracted where there is no EOS
        ("replace", -7.0, [1.0, -7.0, 3.0, -7.0]),
        ("mask", None, [1.0, 0.0, 3.0, 0.0]),
        ("bootstrap", None, [1.0, 0.0, 3.0, 0.0]),  # V stands for all that would have followed, the score included
    ],
)
def test_each_truncation_rule_by_hand(rule, value, expected):
    out = shape([1.0, 2.0, 3.0, 4.0], truncation=TruncationConfig(rule=rule, value=value))
    assert out.scores.tolist() == expected
    assert out.bootstrap.tolist() == ([0, 20, 0, 40] if rule == "bootstrap" else [0, 0, 0, 0])
    kept = ENDED if rule == "mask" else torch.ones(4, dtype=torch.bool)
    assert torch.equal(out.rollout.mask, rollout().mask & kept.unsqueeze(1))
    assert torch.equal(out.rollout.response_mask, rollout().response_mask)  # attention sees what was sampled


def test_the_order_is_normalise_then_clip_then_truncation_rule():
    """2, 4, 6, 8: mean 5, std sqrt(20/3) = 2.58; clipped to +-1 they are -1, -0.387, 0.387, 1; then minus 3."""
    out = shape(
        [2.0, 4.0, 6.0, 8.0],
        truncation=TruncationConfig(rule="penalty", value=3.0),
        score_normalize=True,
        score_clip=1.0,
    )
    one = 1 / math.sqrt(20 / 3)
    assert out.scores.tolist() == pytest.approx([-1, -one - 3, one, 1 - 3])  # the penalty is not clipped away
    replaced = shape([1.0] * 4, truncation=TruncationConfig(rule="replace", value=-9.0), score_clip=0.5)
    assert replaced.scores.tolist() == [0.5, -9.0, 0.5, -9.0]


@pytest.mark.parametrize(("rule", "value"), [("keep", None), ("penalty", 2.0), ("replace", 2.0)])
def test_a_row_that_nobody_scored_has_no_mask_and_no_score_whatever_the_rule(rule, value):
    truncation = TruncationConfig(rule=rule, value=value)
    out = shape([1.0, 5.0, 1.0, 1.0], (True, False, True, True), truncation=truncation)
    assert out.scores[1] == 0
    assert not out.rollout.mask[1].any()
    assert torch.equal(out.rollout.mask[[0, 2, 3]], rollout().mask[[0, 2, 3]])


def test_numbers_that_are_0_and_scores_that_are_not_learned_from():
    """A penalty of 0 takes nothing, a cut response may be worth 0; a baseline's scores leave the moments alone."""
    for rule, expected in [("penalty", [1.0, 2.0, 3.0, 4.0]), ("replace", [1.0, 0.0, 3.0, 0.0])]:
        truncation = TruncationConfig(rule=rule, value=0.0)
        assert shape([1.0, 2.0, 3.0, 4.0], truncation=truncation).scores.tolist() == expected
    running, ppo = Moments(7.0, 21.0, 3), PPOConfig(score_normalize=True)
    out = shape_scores(scored([5.0, 8.0, 10.0, 0.0]), rollout(), NEXT, running, ppo, KEEP, learn=False)
    assert out.running == running
    std = math.sqrt(7 / 3)  # of 1, 2 and 4, whose mean is 7/3
    assert out.scores.tolist() == pytest.approx([(x - 7 / 3) / std for x in (5, 8, 10, 0)])


def test_scores_that_do_not_vary_are_divided_by_one():
    out = with_tokens([[0.5] + [0.0] * 5] * 4, [7.0] * 4, ppo={"score_normalize": True})
    assert out.token_rewards[:, 0].tolist() == [0.5] * 4


def test_the_target_behind_the_eos_is_what_no_token_got():
    """Rows 0 and 2 have an EOS. 3 - (1 + 0.5) = 1.5, where 8 stands behind the end, and 5 - 2 = 3; a row that leaves
    the mask has no slot behind it."""
    given = replace(rollout(), mask=torch.tensor([[True, True, False, False, False, False]] * 4))
    tokens = torch.zeros(4, 6)
    tokens[0, :3], tokens[2, 0] = torch.tensor([1.0, 0.5, 8.0]), 2.0
    scores = replace(scored([3.0, 4.0, 5.0, 6.0]), token_rewards=tokens)
    after, last = PPOConfig(score_slot="after"), PPOConfig(score_slot="last")
    out = shape_scores(scores, given, NEXT, NONE_YET, after, KEEP)
    assert out.slot_returns.nan_to_num(-1).tolist() == [1.5, -1, 3, -1]
    without = out.keeping(torch.tensor([False, True, True, True]))
    assert without.slot_returns.nan_to_num(-1).tolist() == [-1, -1, 3, -1]
    assert without.rollout.mask.any(dim=1).tolist() == [False, True, True, True]
    plain = shape_scores(scores, given, NEXT, NONE_YET, last, KEEP)
    assert plain.slot_returns is None
    assert plain.keeping(torch.tensor([False, True, True, True])).slot_returns is None


# ---- rewards a token ---------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True, False], [True, False, True, False], [False] * 4, [True, False, False, False]])
PENALTY = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.4, 9.0, 0.5, 9.0], [9.0] * 4, [0.0, 9.0, 9.0, 9.0]])


def test_the_score_lands_on_the_last_token_of_the_mask_not_behind_it():
    rewards = place_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4, 4), PENALTY, MASK)
    expected = [[-0.1, -0.2, 0.7, 0], [-0.4, 0, 1.5, 0], [0, 0, 0, 0], [4.0, 0, 0, 0]]
    assert torch.allclose(rewards, torch.tensor(expected), atol=1e-12)


def test_token_rewards_keep_their_place_and_the_rest_goes_to_the_last_token():
    tokens = torch.tensor([[0.5, 0.0, 0.25, 5.0], [0.0, 5.0, 0.0, 5.0], [5.0] * 4, [3.0, 5.0, 5.0, 5.0]])
    scores = torch.tensor([1.0, 2.0, 3.0, 2.0])  # row 0: 0.75 has a place, 0.25 is left; row 3: 3 placed, -1 left
    rewards = place_rewards(scores, tokens, torch.zeros(4, 4), MASK)
    expected = [[0.5, 0, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert torch.allclose(rewards, torch.tensor(expected), atol=1e-12)


def test_every_row_sums_to_its_score_minus_its_penalty():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(50, 7, generator=g) < 0.6
    scores, tokens = torch.randn(50, generator=g), torch.randn(50, 7, generator=g)
    penalty = torch.randn(50, 7, generator=g)
    rewards = place_rewards(scores, tokens, penalty, mask)
    expected = torch.where(mask.any(dim=1), scores - (penalty * mask).sum(dim=1), 0.0)
    assert (rewards.sum(dim=1) - expected).abs().max() < 1e-10
    assert (rewards[~mask] == 0).all()


def test_junk_under_the_mask_has_no_effect_and_an_all_masked_row_is_zero():
    nan = float("nan")
    scores, tokens = torch.tensor([1.0, 2.0, nan, 4.0]), torch.zeros(4, 4)
    clean = place_rewards(torch.tensor([1.0, 2.0, 0.0, 4.0]), tokens, PENALTY, MASK)
    dirty = place_rewards(scores, tokens.masked_fill(~MASK, nan), PENALTY.masked_fill(~MASK, nan), MASK)
    assert torch.equal(clean, dirty)
    assert dirty[2].tolist() == [0, 0, 0, 0]
