"""Advantage functions: rows by hand, the identities between them, holes in the mask, an exact baseline."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.builtin.advantages import (
    dr_grpo,
    gae,
    grpo,
    mc,
    nstep,
    register_advantage_functions,
    reinforce_pp,
    reward_to_go,
    reward_to_go_baseline,
    rloo,
    td,
    trajectory_return,
)
from minirlhf.errors import PluginError
from minirlhf.rewards.shape import place_rewards
from tests.helpers import built, seeded

pytestmark = pytest.mark.usefixtures("double")
NONE = torch.zeros(1)
NAN = float("nan")


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


FULL = torch.ones(1, 3, dtype=torch.bool)


def test_three_tokens_by_hand():
    rewards, values = row(1, 0, 2), row(0.5, 1, -1)
    assert reward_to_go(rewards, FULL, NONE, gamma=0.5).tolist() == [[1 + 0 + 0.5, 1, 2]]
    assert mc(rewards, values, FULL, NONE).tolist() == [[3 - 0.5, 2 - 1, 2 + 1]]
    # delta = 1 + 1 - .5 = 1.5, 0 - 1 - 1 = -2, 2 - 0 + 1 = 3; with gamma lam = .5: 3, -2 + 1.5, 1.5 - .25
    assert gae(rewards, values, FULL, NONE, lam=0.5).tolist() == [[1.25, -0.5, 3.0]]


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo():
    g = seeded()
    rewards, values = torch.randn(4, 7, generator=g), torch.randn(4, 7, generator=g)
    mask, none = torch.ones(4, 7, dtype=torch.bool), torch.zeros(4)
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    assert torch.allclose(gae(rewards, values, mask, none, gamma=0.9, lam=0.0), rewards + 0.9 * following - values)
    one = gae(rewards, values, mask, none, gamma=0.9, lam=1.0)
    assert torch.allclose(one, mc(rewards, values, mask, none, gamma=0.9))


def test_gae_is_the_weighted_mixture_of_n_step_advantages():
    rewards, values, lam, gamma = row(1, -2, 0.5, 3), row(0.2, 1, -1, 0.4), 0.7, 0.9
    r, v = rewards[0].tolist(), [*values[0].tolist(), 0.0]

    def n_step(t, n):
        n = min(n, 4 - t)
        return sum(gamma**i * r[t + i] for i in range(n)) + gamma**n * v[t + n] - v[t]

    got = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), NONE, gamma=gamma, lam=lam)[0]
    for t in range(4):
        left = 4 - t
        mixture = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, left)) + lam ** (left - 1) * n_step(
            t, left
        )
        assert got[t].item() == pytest.approx(mixture)


def test_a_cut_response_bootstraps_from_the_value_behind_its_end():
    after = torch.tensor([10.0])
    assert reward_to_go(row(1, 1, 1), FULL, after, gamma=0.5).tolist() == [[1 + 0.5 + 0.25 + 1.25, 1.5 + 2.5, 6]]
    assert gae(row(1, 1, 1), row(0, 0, 0), FULL, after, lam=0.0).tolist() == [[1, 1, 11]]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 1000))
def test_holes_are_stepped_over_as_if_they_were_cut_out(holes, seed):
    g, mask = seeded(seed), torch.tensor([holes])
    rewards = torch.randn(1, len(holes), generator=g, dtype=torch.float64)
    values = torch.randn(1, len(holes), generator=g, dtype=torch.float64)
    after = torch.randn(1, generator=g, dtype=torch.float64)
    rewards, values = rewards.where(mask, float("nan")), values.where(mask, float("nan"))
    kept = mask[0].nonzero().squeeze(1)
    full = torch.ones(1, len(kept), dtype=torch.bool)
    given = {"rewards": rewards, "values": values}
    for function in ONE:
        got = call(function, rewards, mask, values, after, gamma=0.9)
        assert got.isfinite().all()
        assert (got[~mask] == 0).all()
        if len(kept):
            cut = {name: x[:, kept] for name, x in given.items()}
            compact = call(function, cut["rewards"], full, cut["values"], after, gamma=0.9)
            assert torch.allclose(got[:, kept], compact)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_with_the_exact_value_function_gae_is_the_true_advantage_for_every_lambda(lam):
    """Two binary actions, rewards r(a1, a2) at the end: enumerate the four episodes of a fixed stochastic policy."""
    p, reward = 0.3, {(0, 0): 1.0, (0, 1): -2.0, (1, 0): 0.5, (1, 1): 4.0}
    chance = {0: 1 - p, 1: p}
    v1 = {a: sum(chance[b] * reward[a, b] for b in (0, 1)) for a in (0, 1)}  # V after the first action
    v0 = sum(chance[a] * v1[a] for a in (0, 1))
    expected = dict.fromkeys((0, 1), 0.0)
    for a, b in itertools.product((0, 1), repeat=2):
        got = gae(row(0, reward[a, b]), row(v0, v1[a]), torch.ones(1, 2, dtype=torch.bool), NONE, lam=lam)[0]
        expected[a] += chance[b] * got[0].item()  # E over the rest of the episode, given the first action
    for a in (0, 1):
        assert expected[a] == pytest.approx(v1[a] - v0)  # Q(s0, a) - V(s0)


# ---- all of them -------------------------------------------------------------------------------------------

ONE = (trajectory_return, reward_to_go, reward_to_go_baseline, mc, td, nstep, gae, reinforce_pp)
GROUPS = (rloo, grpo, dr_grpo)


def call(function, rewards, mask, values=None, after=None, group=None, **options):
    """Bound by name, as the loop does it."""
    given = {
        "rewards": rewards,
        "mask": mask,
        "values": torch.zeros_like(rewards) if values is None else values,
        "bootstrap_values": torch.zeros(len(rewards)) if after is None else after,
        "group": torch.zeros(len(rewards), dtype=torch.long) if group is None else group,
    }
    return built("advantage", function, **options)(given)


def test_every_function_is_tested_here():
    assert {function.__name__: function for function in (*ONE, *GROUPS)} == register_advantage_functions()


def test_the_return_of_the_whole_trajectory_is_on_every_token():
    rewards, mask = torch.tensor([[1.0, 0, 2], [4, 8, NAN]]), torch.tensor([[True] * 3, [True, True, False]])
    assert call(trajectory_return, rewards, mask, gamma=0.5).tolist() == [[1.5] * 3, [8, 8, 0]]
    after = torch.tensor([8.0, 4.0])  # 1 + 2/4 + 8/8 and 4 + 8/2 + 4/4
    assert call(trajectory_return, rewards, mask, after=after, gamma=0.5).tolist() == [[2.5] * 3, [9, 9, 0]]


def test_the_baseline_is_the_mean_over_the_batch_at_the_same_token():
    """To go: 3, 2, 2 and 5, 4, so the other row has 5, 4, none and 3, 2. The hole of the second row is stepped over.
    With a third row of 1: others 3, 4, none; 2, 2; and 4."""
    rewards = torch.tensor([[1.0, 0, 2], [1, NAN, 4]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assert call(reward_to_go_baseline, rewards, mask).tolist() == [[-2, -2, 2], [2, 0, 2]]
    rewards = torch.cat([rewards, torch.tensor([[1.0, NAN, NAN]])])
    mask = torch.cat([mask, torch.tensor([[True, False, False]])])
    assert call(reward_to_go_baseline, rewards, mask).tolist() == [[0, -2, 2], [3, 0, 2], [-3, 0, 0]]


def test_the_baseline_leaves_the_expected_gradient_alone_in_ragged_batches_of_two():
    """Two tokens of a or b, or a first b that ends: E[sum A_t grad log pi] over all pairs is that of reward-to-go."""
    p, q = 0.3, 0.6  # chances of a at the first token, and of a at the second
    responses = {"b": (1 - p, [5.0, 0.0]), "aa": (p * q, [1.0, 2.0]), "ab": (p * (1 - q), [0.0, -3.0])}
    grads = {"b": (-p, 0.0), "aa": (1 - p, 1 - q), "ab": (1 - p, -q)}  # d log pi / d logit of a

    def expected(function):
        total = torch.zeros(2)
        for x, (chance_x, reward_x) in responses.items():
            for y, (chance_y, reward_y) in responses.items():
                rewards = torch.tensor([reward_x, reward_y])
                mask = torch.tensor([[True, len(x) == 2], [True, len(y) == 2]])
                found = call(function, rewards, mask)
                total += chance_x * chance_y * found[0] * torch.tensor(grads[x])
        return total

    assert torch.allclose(expected(reward_to_go_baseline), expected(reward_to_go), atol=1e-12)


def test_n_steps_by_hand():
    """r = 1, 0, 2 and V = .5, 1, -1: two steps from t=0: 1 + 0 - 1 - .5; t=1: 0 + 2 - 1; t=2: 2 + 1."""
    rewards, values = row(1, 0, 2), row(0.5, 1, -1)
    assert call(nstep, rewards, FULL, values, n=2).tolist() == [[-0.5, 1, 3]]
    assert call(nstep, rewards, FULL, values, n=2, gamma=0.5).tolist() == [[1 - 0.25 - 0.5, 1 - 1, 3]]
    assert call(nstep, rewards, FULL, values, torch.tensor([10.0]), n=2).tolist() == [[-0.5, 11, 13]]
    assert torch.equal(call(nstep, rewards, FULL, values, n=1), call(td, rewards, FULL, values))
    assert torch.allclose(call(nstep, rewards, FULL, values, n=9), call(mc, rewards, FULL, values))
    with pytest.raises(PluginError, match="n must be at least 1"):
        call(nstep, rewards, FULL, values, n=0)


def test_td_is_one_step():
    assert call(td, row(1, 0, 2), FULL, row(0.5, 1, -1), gamma=0.5).tolist() == [[1.0, -1.5, 3.0]]
    assert call(td, row(1, 0, 2), FULL, row(0.5, 1, -1), torch.tensor([4.0]), gamma=0.5).tolist() == [[1.0, -1.5, 5.0]]


def test_rewards_to_go_of_cut_responses_by_hand():
    """1 + 2/2 + 8/4 and 2 + 8/2, and 4 behind the third token; the baseline is what the other row has there."""
    rewards, mask = torch.tensor([[1.0, 2.0, NAN], [0.0, 1.0, 3.0]]), torch.tensor([[True, True, False], [True] * 3])
    after = torch.tensor([8.0, 4.0])  # second row: 3 + 4/2 = 5, 1 + 5/2 = 3.5, 0 + 3.5/2 = 1.75
    to_go = [[4, 6, 0], [1.75, 3.5, 5]]
    assert call(reward_to_go, rewards, mask, after=after, gamma=0.5).tolist() == to_go
    assert call(reinforce_pp, rewards, mask, after=after, gamma=0.5).tolist() == to_go
    found = call(reward_to_go_baseline, rewards, mask, after=after, gamma=0.5)
    assert found.tolist() == [[2.25, 2.5, 0], [-2.25, -2.5, 5]]


def test_without_options_nothing_is_discounted_and_lambda_is_095_and_n_3():
    """Rewards of 1, V = 0: 5 on every token, or 5 to 1; 1 / 0.05 of 1 - 0.95^5 in sum; never more than three."""
    ones, mask = torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool)
    left = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    assert call(trajectory_return, ones, mask).tolist() == [[5.0] * 5]
    for function in (reward_to_go, reward_to_go_baseline, mc, reinforce_pp):
        assert torch.equal(call(function, ones, mask), left)
    assert torch.allclose(call(gae, ones, mask), (1 - 0.95**left) / 0.05)
    assert torch.equal(call(nstep, ones, mask), left.clamp(max=3))
    for function in (td, nstep, gae):  # and the V of the next token counts whole
        assert call(function, torch.zeros(1, 1), mask[:, :1], after=torch.tensor([2.0])).tolist() == [[2.0]]


def test_groups_by_hand():
    """Returns 1, 2, 6 of one prompt (mean 3, std sqrt 7) and 4, 4 of another; the KL is in the rewards."""
    rewards = torch.tensor([[0.5, 0.5], [2.0, NAN], [7.0, -1.0], [4.0, 0.0], [1.0, 3.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True], [True, True]])
    group = torch.tensor([7, 7, 7, 2, 2])
    centred = [-2.0, -1.0, 3.0, 0.0, 0.0]
    spread = torch.tensor([[c, c] for c in centred]).where(mask, 0.0)
    assert torch.allclose(call(dr_grpo, rewards, mask, group=group), spread)
    assert torch.allclose(call(rloo, rewards, mask, group=group), 1.5 * spread)  # 1 - (2+6)/2 = -3
    assert torch.allclose(call(grpo, rewards, mask, group=group), spread / (7**0.5 + 1e-4))


def test_in_a_group_of_two_grpo_divides_by_the_std_of_two():
    """Scores 0 and 1: mean 1/2, unbiased std sqrt(2 x 1/4 / 1) = sqrt(1/2), so +-0.5 / (0.70711 + 1e-4)."""
    found = call(grpo, torch.tensor([[0.0], [1.0]]), torch.ones(2, 1, dtype=torch.bool), group=torch.tensor([0, 0]))
    assert found.flatten().tolist() == pytest.approx([-0.70701, 0.70701], abs=1e-5)


def test_a_row_that_takes_no_part_leaves_its_groups_baseline():
    rewards = torch.tensor([[1.0], [3.0], [100.0]])
    mask = torch.tensor([[True], [True], [False]])
    assert call(rloo, rewards, mask).tolist() == [[-2], [2], [0]]
    assert call(dr_grpo, rewards, mask).tolist() == [[-1], [1], [0]]
    alone = torch.tensor([[True], [False], [False]])
    for function in GROUPS:
        assert call(function, rewards, alone).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("function", GROUPS)
def test_a_group_of_one_is_refused(function):
    with pytest.raises(PluginError, match=r"only one response; set ppo\.responses_per_prompt"):
        call(function, torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool), group=torch.tensor([0, 0, 1]))


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_a_group_without_variance_gets_exactly_zero_and_rloo_sums_to_zero(size, length, seed):
    g = seeded(seed)
    mask = torch.rand(2 * size, length, generator=g) < 0.7
    group = torch.arange(2).repeat_interleave(size)
    # 0.1 + 0.2 + ... has rounding noise: one returns 0.30000000000000004 where another returns 0.3
    same = torch.zeros(2 * size, length).index_fill(1, torch.tensor([0]), 0.1)
    kept = mask.clone()
    kept[:, 0] = True
    for function in GROUPS:
        assert (call(function, same, kept, group=group) == 0).all()
    rewards = torch.randn(2 * size, length, generator=g)
    a_token = call(rloo, rewards, mask, group=group).where(mask, 0.0)
    each = a_token.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    for which in range(2):
        assert abs(float(each[group == which].sum())) < 1e-9


@given(
    st.sampled_from([*ONE, *GROUPS]), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10_000),
    st.sampled_from([1.0, 1e6, 1e-6, 0.0]),
)  # fmt: skip
def test_junk_under_the_mask_changes_nothing_and_nothing_is_nan(function, pairs, length, seed, size):
    """Holes, rows of one token, rows without any, no variance, NaN and infinity where masked."""
    g = seeded(seed)
    mask = torch.rand(2 * pairs, length, generator=g) < 0.6
    rewards, values = (size * torch.randn(2 * pairs, length, generator=g) for _ in range(2))
    group = torch.arange(2 * pairs) % pairs
    plain = call(function, rewards.where(mask, 0.0), mask, values.where(mask, 0.0), group=group)
    assert plain.isfinite().all()
    assert (plain[~mask] == 0).all()
    for junk in (NAN, float("inf"), -3e38):
        found = call(function, rewards.where(mask, junk), mask, values.where(mask, junk), group=group)
        assert torch.equal(found, plain)


@given(st.sampled_from([*ONE, *GROUPS]), st.integers(0, 10_000))
def test_the_order_of_the_rows_changes_nothing(function, seed):
    g = seeded(seed)
    mask = torch.rand(6, 4, generator=g) < 0.7
    rewards, values, group = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g), torch.arange(6) // 2
    order = torch.randperm(6, generator=g)
    plain = call(function, rewards, mask, values, group=group)
    turned = call(function, rewards[order], mask[order], values[order], group=group[order])
    assert torch.allclose(turned, plain[order], atol=1e-12)


def test_equal_returns_beside_large_values_of_cut_responses_are_equal():
    """To go 10,000,001 and 10,000,001.5: apart by 5e-8 of their size, which comes from V behind the end."""
    rewards, after = torch.tensor([[1.0], [0.0]]), torch.tensor([1e7, 1e7 + 1.5])
    assert call(reward_to_go_baseline, rewards, torch.ones(2, 1, dtype=torch.bool), after=after).tolist() == [[0], [0]]


def test_what_is_rounding_in_one_group_is_none_in_another():
    """1,000,000,000.5 beside 1,000,000,000 are equal but for rounding; 1.5 beside 1 are not, whatever is near."""
    rewards, group = torch.tensor([[1e9 + 0.5], [1e9], [1.5], [1.0]]), torch.tensor([0, 0, 1, 1])
    found = call(dr_grpo, rewards, torch.ones(4, 1, dtype=torch.bool), group=group)
    assert found.tolist() == [[0], [0], [0.25], [-0.25]]


@pytest.mark.parametrize("function", [*ONE, *GROUPS])
def test_advantages_are_of_the_type_of_the_rewards(function):
    rewards, mask = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).float(), torch.ones(2, 2, dtype=torch.bool)
    assert call(function, rewards, mask, after=torch.tensor([0.5, 0.25]).float()).dtype == torch.float32


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("function", GROUPS)
@pytest.mark.parametrize("score", [10000.1, -0.3, 3e-7])
def test_token_rewards_that_sum_to_one_score_teach_nothing(function, score, placed):
    """96 responses of 1 to 48 tokens, each of which gives score/length a token: the sums differ by rounding alone."""
    lengths = torch.arange(96) % 48 + 1
    mask = torch.arange(48) < lengths.unsqueeze(1)
    rewards = torch.where(mask, (score / lengths.double()).unsqueeze(1).float(), 0.0)
    if placed:
        rewards = place_rewards(torch.full((96,), score).float(), rewards, torch.zeros(96, 48).float(), mask)
    assert (call(function, rewards, mask, group=torch.arange(96) % 2) == 0).all()


def test_equal_returns_in_another_order_are_equal_beside_their_baseline():
    """Every response has the same 48 token rewards, in an order of its own: R_0 is the same sum, but for rounding."""
    orders = torch.stack([torch.randperm(48, generator=seeded(i)) for i in range(96)])
    rewards = (torch.rand(48, generator=seeded()) * 1000).float()[orders]
    advantages = call(reward_to_go_baseline, rewards, torch.ones(96, 48, dtype=torch.bool))
    assert (advantages[:, 0] == 0).all()
    assert (advantages[:, 1:] != 0).any(dim=1).all()


def test_a_small_difference_beside_no_other_number_is_no_rounding():
    found = call(dr_grpo, torch.tensor([[1e-9], [3e-9]]), torch.ones(2, 1, dtype=torch.bool))
    assert found.flatten().tolist() == pytest.approx([-1e-9, 1e-9])
