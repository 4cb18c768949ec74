"""Metrics by hand on a rollout of 2 x 3 tokens, and averages that do not depend on how a minibatch is split."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.builtin.advantages import gae, rloo
from minirlhf.models.rollout import Rollout
from minirlhf.rl.experience import Experience
from minirlhf.rl.metrics import (
    Averages,
    correlation,
    discount,
    explained_variance,
    flat_groups,
    repeated_triples,
    residual_std,
    rewards_that_came,
    rollout_metrics,
    update_metrics,
)
from tests.helpers import EOS, built, seeded, shaped_as

pytestmark = pytest.mark.usefixtures("double")

NAN = float("nan")
MASK = torch.tensor([[True, True, True], [True, True, False]])


def experience(**changed) -> Experience:
    """Two responses of three and two tokens; the second stopped. The sixth position is junk."""
    rollout = Rollout(
        prompt_ids=torch.tensor([[1], [1]]),
        prompt_mask=torch.ones(2, 1, dtype=torch.bool),
        response_ids=torch.tensor([[3, 4, 5], [6, EOS, EOS]]),  # the last one is padding that happens to look like EOS
        response_mask=MASK,
        mask=MASK.clone(),
        terminated=torch.tensor([False, True]),
        group=torch.tensor([0, 1]),
        prompts=("", ""),
        completions=("", ""),
        columns={},
    )
    given = {
        "rollout": rollout,
        "old_logprobs": torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, NAN]]),
        "ref_logprobs": torch.zeros(2, 3),
        "old_values": torch.tensor([[0.0, 1.0, 2.0], [3.0, 5.0, NAN]]),
        "kl": torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.6, NAN]]),
        "scores": torch.tensor([1.0, 4.0]),
        "rewards": torch.tensor([[-0.1, -0.2, 0.7], [-0.4, 3.4, NAN]]),
        "advantages": torch.zeros(2, 3),
        "returns": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]]),
        "ref_log_dist": lambda rows: torch.zeros(2, 3, 13)[rows],
    }
    return Experience(**(given | changed))


def measured(e, entropy=None, penalty=None, beta=0.1, function=gae, bootstrap=(0.0, 0.0), **options):
    ones = torch.ones(2, 3)
    shaped = shaped_as(e, torch.tensor(bootstrap))
    advantage = built("advantage", function, **options)
    entropy, penalty = (ones if x is None else x for x in (entropy, penalty))
    return rollout_metrics(e, shaped, entropy, penalty, beta, advantage, EOS)


def test_every_metric_of_a_rollout_by_hand():
    entropy = torch.tensor([[1.0, 1.5, 2.0], [0.5, 1.0, NAN]])
    penalty = torch.tensor([[0.01, 0.02, 0.03], [0.04, 0.06, NAN]])
    metrics = measured(experience(), entropy, penalty)
    # G, what is still to come: .4, .5, .7; 3, 3.4 have mean 1.6, squared deviations 1.44 + 1.21 + .81 + 1.96 + 3.24;
    # G - V: .4, -.5, -1.3; 0, -1.6 have mean -.6 and 1 + .01 + .49 + .36 + 1
    assert metrics == pytest.approx(
        {
            "objective/kl": (0.6 + 1.0) / 2,  # nats per sequence
            "objective/entropy": 15 / 2,  # -log p of the tokens taken, nats per sequence
            "objective/non_score_reward": -0.16 / 2,
            "objective/rlhf_reward": (0.4 + 3.0) / 2,
            "objective/scores": 2.5,
            "objective/scores_std": math.sqrt(4.5),  # 1, 4: unbiased variance 2 x 1.5^2
            "policy/entropy_avg": 6 / 5,  # nats per token
            "val/num_eos_tokens": 1,
            "response/length": 2.5,
            "response/eos_rate": 0.5,
            "count/masked_rows": 0,
            "count/flat_batches": 1,  # its advantages are 0
            "value/explained_variance": 1 - 2.86 / 8.66,
            "objective/score_length_correlation": -1,  # two points: 1 with three tokens, 4 with two
            "response/repetition": 0,
        },
        abs=1e-10,
    )


def test_rows_that_take_no_part_leave_the_means_but_stay_responses():
    whole = experience()
    out = measured(replace(whole, rollout=whole.rollout.keeping(torch.tensor([True, False]))))
    assert out["objective/kl"] == pytest.approx(0.6, abs=1e-10)
    assert out["objective/scores"] == 1
    assert math.isnan(out["objective/scores_std"])  # of one score
    assert out["objective/non_score_reward"] == -3
    assert out["count/masked_rows"] == 1
    assert out["response/length"] == 2.5
    assert out["val/num_eos_tokens"] == 1


def test_a_response_that_another_token_than_eos_ends_has_ended():
    whole = experience()
    ended = replace(whole.rollout, terminated=torch.tensor([True, True]))
    assert measured(replace(whole, rollout=ended))["val/num_eos_tokens"] == 2


def test_of_a_rollout_without_any_scored_row_what_was_not_measured_is_nan():
    whole = experience()
    nobody = replace(whole, rollout=whole.rollout.keeping(torch.tensor([False, False])))
    out = measured(nobody, torch.full((2, 3), NAN), torch.full((2, 3), NAN))
    unknown = {name for name, value in out.items() if math.isnan(value)}
    assert unknown == {name for name in out if name.startswith(("objective/", "policy/", "value/"))}
    assert out["count/masked_rows"] == 2
    assert (out["response/length"], out["response/eos_rate"]) == (2.5, 0.5)  # the responses are there


def test_a_batch_is_flat_if_no_token_of_the_mask_has_an_advantage():
    def flat(*advantages):
        a = torch.zeros(2, 3).masked_scatter(MASK, torch.tensor(advantages)).masked_fill(~MASK, NAN)
        return measured(experience(advantages=a))["count/flat_batches"]

    assert flat(0.0, 0.0, 0.0, 0.0, 0.0) == 1.0
    assert flat(0.0, 0.0, 0.0, 1e-9, 0.0) == 0.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0),
        ([11.0, 12.0, 13.0, 14.0, 15.0], 1.0),  # a constant error explains everything
        ([7.0, 7.0, 7.0, 7.0, 7.0], 0.0),  # a constant explains nothing
        ([-1.0, -2.0, -3.0, -4.0, -5.0], -3.0),  # errors 2, 4, .., 10: four times the variance
    ],
)
def test_explained_variance_is_1_0_and_negative(values, expected):
    full = torch.full((2, 3), NAN)
    came, guess = full.masked_scatter(MASK, torch.arange(1.0, 6.0)), full.masked_scatter(MASK, torch.tensor(values))
    assert explained_variance(came, guess, MASK) == pytest.approx(expected, abs=1e-10)


def tokens(*row, masked=NAN):
    return torch.full((2, 3), masked).masked_scatter(MASK, torch.tensor(row))


def test_v_is_held_against_the_rewards_that_came_and_not_against_returns_that_contain_it():
    """Scores 1 and -1 at the end: G = 1, 1, 1; -1, -1, squared deviations 4.8. V climbs by 3 a token whatever comes: of
    G - V = 1, -2, -5; -1, -4 they are 22.8. The returns of td are V of the next token; one that says V + 0 reads 1."""
    v = tokens(0.0, 3.0, 6.0, 0.0, 3.0)
    e = experience(rewards=tokens(0.0, 0.0, 1.0, 0.0, -1.0), old_values=v, returns=v)
    assert measured(e)["value/explained_variance"] == pytest.approx(1 - 22.8 / 4.8, abs=1e-10)


def test_a_v_that_walks_at_random_explains_nothing():
    g = seeded()
    mask, walk = torch.ones(64, 40, dtype=torch.bool), torch.randn(64, 40, generator=g).cumsum(dim=1)
    rewards = torch.zeros(64, 40)
    rewards[:, -1] = torch.randn(64, generator=g)
    returns = gae(rewards, walk, mask, torch.zeros(64), lam=0.5) + walk
    assert explained_variance(returns, walk, mask) > 0.8  # as if V predicted nearly everything
    assert explained_variance(rewards.sum(dim=1, keepdim=True).expand(64, 40), walk, mask) < -1


@pytest.mark.parametrize(
    ("function", "options", "bootstrap", "slot", "came"),
    [
        (gae, {"gamma": 0.5}, 0.0, None, (0.25, 0.5, 1.0, -0.5, -1.0)),
        (gae, {}, 0.0, None, (1.0, 1.0, 1.0, -1.0, -1.0)),  # its default
        (rloo, {}, 0.0, None, (1.0, 1.0, 1.0, -1.0, -1.0)),  # it has no discount
        (gae, {"gamma": 0.5}, 4.0, None, (0.75, 1.5, 3.0, -0.5, -1.0)),  # the first was cut, and V of what follows is 4
        (gae, {"gamma": 0.5}, 0.0, -1.0, (0.25, 0.5, 1.0, -0.25, -0.5)),  # the second's score is behind its EOS
        (gae, {"gamma": 0.5}, 4.0, -1.0, (0.75, 1.5, 3.0, -0.25, -0.5)),
    ],
)
def test_what_came_is_discounted_as_the_advantage_function_says(function, options, bootstrap, slot, came):
    e = experience(
        rewards=tokens(0.0, 0.0, 1.0, 0.0, -1.0),
        old_values=tokens(*came),
        slot_returns=None if slot is None else torch.tensor([NAN, slot]),
    )
    found = measured(e, function=function, bootstrap=(bootstrap, 0.0), **options)
    assert found["value/explained_variance"] == pytest.approx(1.0, abs=1e-12)


def test_a_score_behind_a_response_of_one_token_is_one_step_later():
    """Its -1 leaves the token and comes back behind it, at half the worth; the first row has no such slot."""
    short = torch.tensor([[True, True, True], [True, False, False]])
    rollout = replace(experience().rollout, response_mask=short, mask=short)
    rewards, slot = torch.tensor([[0.0, 0.0, 1.0], [-1.0, NAN, NAN]]), torch.tensor([NAN, -1.0])
    e = experience(rollout=rollout, rewards=rewards, slot_returns=slot)
    assert rewards_that_came(e, shaped_as(e), 0.5).tolist() == [[0.25, 0.5, 1.0], [-0.5, 0.0, 0.0]]


def test_an_option_gamma_that_is_no_number_is_no_discount():
    def named(rewards, mask, *, gamma: str = "auto"):
        return rewards

    assert discount(built("advantage", named)) == 1.0


def test_of_rewards_without_variance_there_is_nothing_to_explain():
    assert math.isnan(explained_variance(torch.full((2, 3), 4.0), torch.zeros(2, 3), MASK))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_averages_over_micro_batches_equal_those_over_the_whole(size):
    """Ragged rows and one without tokens: a mean of micro-batch means would weigh their tokens differently."""
    g = seeded()
    mask = torch.arange(4) < torch.tensor([[1], [4], [0], [2], [3]])
    x = torch.randn(5, 4, generator=g).masked_fill(~mask, NAN)
    flags = torch.rand(5, 4, generator=g) < 0.5
    log = Averages(tokens=mask.sum())
    for start in range(0, 5, size):
        rows = slice(start, start + size)
        share = torch.where(mask[rows], x[rows], 0.0).sum() / 10
        log.add({"share": share.requires_grad_()})
        log.add_means({"x": x[rows], "flag": flags[rows], "constant": torch.tensor(3.0)}, mask[rows])
        log.add_largest("largest", x[rows].abs(), mask[rows])
    read = log.read()
    kept = [x[i, t].item() for i in range(5) for t in range(4) if mask[i, t]]
    hits = [flags[i, t].item() for i in range(5) for t in range(4) if mask[i, t]]
    assert read["x"] == pytest.approx(sum(kept) / 10, abs=1e-10)
    assert read["share"] == pytest.approx(sum(kept) / 10, abs=1e-10)
    assert read["flag"] == pytest.approx(sum(hits) / 10, abs=1e-10)
    assert read["constant"] == pytest.approx(3.0, abs=1e-10)
    assert read["largest"] == pytest.approx(max(abs(v) for v in kept), abs=1e-10)


def test_updates_are_averaged_and_the_first_log_ratio_is_the_first_ones():
    updates = [
        {"log_ratio": 1e-7, "val/ratio": 1.0, "loss/policy_avg": 2.0},
        {"log_ratio": 0.5, "val/ratio": 1.3, "loss/policy_avg": -1.0},
    ]
    metrics = update_metrics(updates, beta=0.07, lr=1e-3)
    assert metrics == pytest.approx(
        {
            "val/ratio": 1.15,
            "val/ratio_var": 2 * 0.15**2,  # unbiased, over the updates
            "loss/policy_avg": 0.5,
            "policy/first_log_ratio": 1e-7,
            "count/updates": 2,
            "kl/coef": 0.07,
            "lr": 1e-3,
        },
        abs=1e-12,
    )


def test_ratios_close_to_1_vary_as_they_do():
    """1 and 1 + 1e-8: unbiased variance 2 x (5e-9)^2. In float32 both are 1. One alone does not vary."""
    torch.set_default_dtype(torch.float32)  # as in a run
    close = [{"log_ratio": 0.0, "val/ratio": ratio} for ratio in (1.0, 1.0 + 1e-8)]
    assert update_metrics(close, 0.07, 1e-3)["val/ratio_var"] == pytest.approx(5e-17, rel=1e-6, abs=0)
    assert update_metrics(close[:1], 0.07, 1e-3)["val/ratio_var"] == 0


def test_an_iteration_without_updates_still_has_its_counts():
    metrics = update_metrics([], 0.07, 1e-3)
    assert math.isnan(metrics.pop("val/ratio_var"))
    assert math.isnan(metrics.pop("policy/first_log_ratio"))
    assert metrics == {"count/updates": 0.0, "kl/coef": 0.07, "lr": 1e-3}


def test_the_residual_is_the_spread_within_prompts_pooled():
    """Groups 0: 1, 3 (variance 2, one degree of freedom); 5: 2, 2, 5 (variance 3, two); 7 has one row left."""
    residuals = torch.tensor([1.0, 2.0, 3.0, 2.0, 5.0, 40.0, 9.0, 10.0])
    group = torch.tensor([0, 5, 0, 5, 5, 5, 7, 7])
    rows = torch.tensor([True, True, True, True, True, False, True, False])
    assert residual_std(residuals, group, rows) == pytest.approx(math.sqrt((2 * 1 + 3 * 2) / 3), abs=1e-12)
    assert residual_std(residuals, torch.arange(8), rows) is None
    assert residual_std(torch.full((4,), 0.1), torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)) < 1e-7


def test_the_residual_of_a_rollout_is_zero_at_the_optimum():
    """r = beta log(pi/ref) + constant of the prompt is what the optimum looks like."""
    whole = experience(ref_logprobs=torch.tensor([[-0.5, -1.5, -1.0], [-2.0, -4.0, NAN]]))
    same = replace(whole.rollout, group=torch.zeros(2, dtype=torch.long))
    log_ratio = torch.where(whole.mask, whole.old_logprobs - whole.ref_logprobs, 0.0).sum(dim=1)
    best = replace(whole, rollout=same, scores=0.3 * log_ratio + 2)
    assert measured(best, beta=0.3)["objective/residual_std"] < 1e-6
    off = measured(best)["objective/residual_std"]
    by_hand = 0.2 * abs(float(log_ratio[0] - log_ratio[1])) / math.sqrt(2)
    assert off == pytest.approx(by_hand, abs=1e-6)
    assert "objective/residual_std" not in measured(whole)


def test_repetition_correlation_and_flat_groups_by_hand():
    # 1 2 3 1 2 3 has triples 123 231 312 123: one of four again; 4 5 has none.
    assert repeated_triples([[1, 2, 3, 1, 2, 3], [4, 5]]) == pytest.approx(0.25)
    assert repeated_triples([[1, 2]]) == 0
    assert repeated_triples([[0, 1, 2, 9, 1, 2], [1, 0, 2, 1, 5, 2]]) == 0  # 1 2 twice, and 1 ? 2 twice: no triples
    assert correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])) == pytest.approx(1)
    assert correlation(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])) == 0
    group, rows = torch.tensor([0, 0, 1, 1, 2, 3, 3]), torch.tensor([True] * 6 + [False])
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 9.0, 4.0, 5.0])  # of 0, 1 (2 and 3 have one row): 0 is flat
    assert flat_groups(scores, group, rows) == pytest.approx(0.5)
    assert flat_groups(-scores, group, rows) == pytest.approx(0.5)
    assert flat_groups(0 * scores, group, rows) == 1


def test_what_differs_by_rounding_alone_does_not_vary():
    """10,000.1 and its neighbour in float32, 0.001 away, are one score; 1e-9 and 2e-9 are two."""
    close, far = torch.tensor([10000.1, 10000.101, 10000.1]), torch.tensor([1e-9, 2e-9, 1e-9])
    lengths, together = torch.tensor([3.0, 5.0, 2.0]), torch.zeros(3, dtype=torch.long)
    assert correlation(close, lengths) == 0
    assert correlation(far, lengths) > 0.9
    everyone = torch.ones(3, dtype=torch.bool)
    assert flat_groups(close, together, everyone) == 1
    assert flat_groups(far, together, everyone) == 0
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert math.isnan(explained_variance(close.unsqueeze(0), torch.tensor([[1.0, 2.0, 3.0]]), mask))
    assert explained_variance(far.unsqueeze(0), far.unsqueeze(0), mask) == 1
