"""J of reference, policy and best-of-n by hand, KL of best-of-n by enumeration, and what each residual proves."""

import math
from itertools import combinations, product

import pytest
import torch

from minirlhf.exact import graph as exact
from minirlhf.exact import lab
from minirlhf.exact.problems import problems
from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.stages import evaluate, objective
from minirlhf.stages.divergence import sequence_kl
from minirlhf.stages.evaluate import Sampling
from minirlhf.stages.objective import (
    Measured,
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_of,
    best_scores,
    compare_objectives,
    kl_of_counts,
    measure,
    outcome,
    why_unknown,
)
from tests.helpers import Letters, seeded, small_policy


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def measured(scores, log_ratio=None, kl=None, shaped=...):
    zeros = torch.zeros_like(scores)
    return Measured(
        scores,
        scores if shaped is ... else shaped,
        zeros if log_ratio is None else log_ratio,
        zeros if kl is None else kl,
    )


# ---- J -----------------------------------------------------------------------------------------------------

BEFORE = tensor([0, 1, 2, 5], [0, 2, 4, 6])
AFTER = measured(tensor([5, 3], [6, 6]), kl=tensor([2, 4], [1, 1]))


def test_the_three_objectives_by_hand():
    """Two prompts, beta 0.5. J of the policy: 4 - 0.5 x 3 = 2.5 and 6 - 0.5 = 5.5; of the reference: 2 and 3.

    Best of 4: 5 and 6, without ties at a KL of log 4 - 3/4. Student's t of two differences a, b is
    (a + b) / 2 +- 12.7062 |a - b| / 2."""
    found = compare_objectives(measured(BEFORE), AFTER, 0.5, 4)
    assert (found["beta"], found["prompts"], found["reference"], found["policy"]) == (0.5, 2, 2.5, 4.0)
    assert found["policy_kl"] == 2.0
    (best,) = found["best_of_n"]
    spent = math.log(4) - 0.75
    assert (best["n"], best["score"], best["kl"]) == (4, pytest.approx(5.5), pytest.approx(spent))
    assert best["objective"] == pytest.approx(5.5 - spent / 2)
    assert found["best_known"] == {"what": "best of 4", "objective": best["objective"]}
    assert found["share_at_most"] == pytest.approx((4 - 2.5) / (5.5 - spent / 2 - 2.5))
    assert found["not_beaten"] == [4]
    assert (found["policy_gain"], found["policy_gain_ci95"]) == (
        1.5,
        pytest.approx([1.5 - 12.7062, 1.5 + 12.7062], abs=1e-3),
    )
    leads = (2.5 - (5 - spent / 2), 5.5 - (6 - spent / 2))
    assert best["policy_lead"] == pytest.approx(sum(leads) / 2)
    assert best["policy_lead_ci95"][1] == pytest.approx(sum(leads) / 2 + 12.7062 * 1, abs=1e-3)
    assert found["verdict"] == {"against": "best of 4", "outcome": "not told apart"}


def test_a_policy_above_all_that_is_known_reaches_all_of_that():
    better = measured(tensor([9, 9], [10, 10]), kl=tensor([1, 1], [1, 1]))
    found = compare_objectives(measured(BEFORE), better, 0.5, 4)
    assert found["best_known"] == {"what": "policy", "objective": 9.0}
    assert (found["share_at_most"], found["not_beaten"]) == (1.0, [])
    assert found["verdict"] == {"against": "best of 4", "outcome": "beats"}


def test_without_a_price_of_kl_j_is_the_score_and_a_reference_that_is_best_leaves_nothing_to_share():
    found = compare_objectives(measured(BEFORE), AFTER, 0.0, 0)
    assert (found["policy"], found["best_of_n"], found["best_known"]["what"]) == (5.0, [], "policy")
    dear = compare_objectives(measured(BEFORE), AFTER, 9.0, 4)
    assert dear["best_known"] == {"what": "reference", "objective": 2.5}
    assert dear["share_at_most"] is None
    assert dear["verdict"]["against"] == "reference"


def test_n_goes_up_by_four_as_far_as_it_is_asked_for():
    many = measured(torch.arange(70.0).double().view(1, 70))
    for most, sizes in ((3, []), (4, [4]), (15, [4]), (16, [4, 16]), (64, [4, 16, 64]), (70, [4, 16, 64])):
        assert [p["n"] for p in compare_objectives(many, measured(tensor([0, 0])), 0.1, most)["best_of_n"]] == sizes


def test_a_prompt_with_a_response_that_has_no_score_leaves_all_sides(monkeypatch):
    nan = math.nan
    before = tensor([0, 1, 2, 5], [0, 2, 4, 6], [1, nan, 1, 1])
    after = measured(tensor([5, 3], [6, nan], [1, 1]), kl=tensor([2, 4], [1, 1], [1, 1]))
    monkeypatch.setattr(objective, "MOST_LOST", 0.7)
    found = compare_objectives(measured(before), after, 0.5, 4)
    assert (found["prompts"], found["reference"], found["policy"]) == (1, 2.0, 2.5)
    assert found["policy_gain_ci95"] is None
    assert found["verdict"]["outcome"] == "not told apart"  # one prompt
    assert compare_objectives(measured(before[2:]), measured(after.scores[2:]), 0.5, 4) is None
    assert compare_objectives(measured(BEFORE, shaped=None), AFTER, 0.5, 4) is None


def test_a_tenth_of_the_prompts_may_be_left_out_and_no_more():
    """Of 20 prompts 2 may lose a response. A prompt that no reward applies to is none of them."""
    scores, nan = torch.arange(80.0, dtype=torch.float64).view(20, 4), math.nan
    cut = scores.clone()
    cut[:2, 0] = nan
    found = compare_objectives(measured(scores, shaped=cut), measured(scores), 0.1, 4)
    assert (found["prompts"], found["prompts_left_out"]) == (18, 2)
    other = scores.clone()
    other[2] = nan  # every response of the policy to a third prompt was cut
    before, after = measured(scores, shaped=cut), measured(scores, shaped=other)
    assert compare_objectives(before, after, 0.1, 4) is None
    assert why_unknown(before, after, "keep") == (
        "3 of 20 prompts have a response without a score; the rest is a selection"
    )
    assert "truncation.rule = mask gives none to one that was cut" in why_unknown(before, after, "mask")
    scores[10:] = nan
    found = compare_objectives(measured(scores), measured(scores), 0.1, 4)
    assert (found["prompts"], found["prompts_left_out"]) == (10, 0)
    nothing = measured(scores[10:])
    assert why_unknown(nothing, nothing, "keep") == "no prompt has a score for every response"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((0.4, 0.5, 0.6), "beats"),  # 0.5 +- 4.303 x 0.1 / sqrt(3) = 0.25
        ((-0.4, -0.5, -0.6), "beaten"),
        ((0.0, 0.2, 0.4), "not told apart"),  # 0.2 +- 0.5
        ((0.0, 0.0, 0.0), "not told apart"),
        ((1e-9, 1e-9, 1e-9), "not told apart"),  # rounding, however sure
        ((-1e-9, -1e-9, -1e-9), "not told apart"),
    ],
)
def test_the_interval_decides_who_is_ahead(differences, expected):
    other = tensor(0.3, -0.2, 0.1)
    assert outcome(other + tensor(*differences), other, 0.1) == expected


# ---- best of n ---------------------------------------------------------------------------------------------


def test_best_of_n_is_the_mean_over_all_ways_to_draw_n():
    """Two prompts with four responses each, one with an unscored one: the best of every subset, by enumeration."""
    scores = tensor([3, -1, 4, 1], [0, 2, 7, 1], [1, math.nan, 2, 3])
    for point, n in zip(best_of_n(scores, 4), (1, 2, 4), strict=True):
        every = [max(c) for row in scores[:2].tolist() for c in combinations(row, n)]
        assert point["score"] == pytest.approx(sum(every) / len(every))
        assert (point["n"], point["kl"]) == (n, pytest.approx(math.log(n) - 1 + 1 / n))
        each = [sum(max(c) for c in combinations(row, n)) / math.comb(4, n) for row in scores[:2].tolist()]
        assert point["score_se"] == pytest.approx(abs(each[0] - each[1]) / 2)  # std |a - b| / sqrt 2, of two prompts
        assert best_scores(scores[:2], n).tolist() == pytest.approx(each)
    assert [p["n"] for p in best_of_n(scores, 2)] == [1, 2]
    assert best_of_n(scores[2:], 4) == []


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_kl_of_best_of_n_with_ties_against_enumeration(n):
    """Responses of probability .5, .3, .2 with scores 0, 1, 1: every way to draw n; the first of the best is taken."""
    p, score = (0.5, 0.3, 0.2), (0, 1, 1)
    best = [0.0, 0.0, 0.0]
    for drawn in product(range(3), repeat=n):
        winner = max(drawn, key=lambda i: score[i])  # the first of the best: in a random order, a tie broken at random
        best[winner] += math.prod(p[i] for i in drawn)
    kl = sum(b * math.log(b / q) for b, q in zip(best, p, strict=True))
    assert kl_of_counts(tensor(50, 50), n).item() == pytest.approx(kl)
    assert kl < best_of_n_kl(n)


def test_without_ties_the_kl_is_the_bound_and_with_nothing_but_ties_0():
    for n in (2, 4, 16):
        assert best_of_n_kl_of(torch.randn(16, generator=seeded()).double(), n).item() == pytest.approx(best_of_n_kl(n))
        assert best_of_n_kl_of(torch.full((16,), 0.7).double(), n).item() == 0.0


@pytest.mark.parametrize(("right", "n"), [(0.5, 4), (0.5, 16), (0.2, 4)])
def test_the_estimate_from_sixteen_responses_is_right_on_average(right, n):
    """A reward of 0 or 1: all samples of sixteen, by the number that is right. The bound is off by 0.18 and more."""
    b, mean = (1 - right) ** n, 0.0
    truth = b * math.log(b / (1 - right)) + (1 - b) * math.log((1 - b) / right)
    for k in range(17):
        chance = math.comb(16, k) * right**k * (1 - right) ** (16 - k)
        mean += chance * best_of_n_kl_of(tensor(*[1.0] * k, *[0.0] * (16 - k)), n).item()
    assert mean == pytest.approx(truth, abs=0.03)  # the jackknife leaves the bias of second order
    assert best_of_n_kl(n) - truth > 0.17


# ---- measuring ---------------------------------------------------------------------------------------------


def test_one_pass_measures_scores_log_ratios_and_kl(monkeypatch):
    """Three prompts with two responses each, in parts that begin within a prompt."""
    monkeypatch.setattr(evaluate, "ROWS", 4)
    monkeypatch.setattr(evaluate, "TOGETHER", 1)
    policy, reference, seen = small_policy(1), Reference(small_policy(2)), []
    prompts = PromptBatch.build(("ab", "c", "dab"), [{}] * 3, Letters(), responses=2)

    def judge(rollout):
        seen.append(rollout)
        scores = torch.tensor([float(len(text)) for text in rollout.completions])
        return scores, torch.where(scores > 2, scores, float("nan"))

    found = measure(policy, policy, reference, prompts, judge, Sampling(Letters(), 4, 0))
    lengths = [float(len(text)) for r in seen for text in r.completions]
    assert found.scores.tolist() == [lengths[0:2], lengths[2:4], lengths[4:6]]
    assert found.shaped.isnan().tolist() == (found.scores <= 2).tolist()
    kl = torch.cat([sequence_kl(policy, reference, rollout) for rollout in seen])
    assert torch.allclose(found.kl.flatten(), kl)
    assert (found.kl > 0.01).all()
    first = seen[0]
    ratio = (policy.forward_pass(first).logprobs - reference.forward_pass(first).logprobs).sum(dim=1)
    assert found.log_ratio.flatten()[:4].tolist() == pytest.approx(ratio.tolist(), abs=1e-5)
    of_reference = measure(reference.policy, policy, reference, prompts, judge, Sampling(Letters(), 4, 0))
    assert of_reference.kl.abs().sum() == 0
    assert of_reference.log_ratio.abs().min() > 0


# ---- the residual on the policy's own responses, and on the reference's -----------------------------------


def test_a_collapsed_policy_by_hand():
    """Three answers with scores 1, 2, 4, alike to the reference; the policy gives the first 0.8, the others 0.1 each.

    Its own responses are the first one again and again: residual 0. On the reference's, with beta 1, r - log(p / q) is
    1 - log 2.4, 2 - log 0.3, 4 - log 0.3."""
    own = measured(tensor([1, 1, 1]), tensor([math.log(2.4)] * 3))
    assert own.residual_std(1.0) == 0.0
    ratios = [math.log(2.4), math.log(0.3), math.log(0.3)]
    x = [score - ratio for score, ratio in zip((1, 2, 4), ratios, strict=True)]
    spread = math.sqrt(sum((value - sum(x) / 3) ** 2 for value in x) / 2)
    of_reference = measured(tensor([1, 2, 4]), tensor(ratios))
    assert of_reference.residual_std(1.0) == pytest.approx(spread)
    assert of_reference.residual_std(0.0) == pytest.approx(math.sqrt(7 / 3))  # of the scores: mean 7/3, squares 42/9
    assert measured(tensor([1, 2, math.nan]), tensor([0, 1, 5])).residual_std(1.0) == 0.0  # 1 and 1
    assert measured(tensor([1, 2]), shaped=None).residual_std(1.0) is None


SIZES = TransformerConfig(
    vocab_size=lab.problem_tokenizer().vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
)  # fmt: skip


def table(policy, problem, tokenizer, log_pi):
    """The problem's reference with other probabilities: those of log_pi (S,V)."""
    found = lab.TableReference(policy, problem, tokenizer)
    found._table[:-1, lab.token_ids(problem, tokenizer)] = log_pi.float()
    return found


@pytest.mark.parametrize("name", ["nonadditive", "prompts", "variable"])
def test_at_the_optimum_of_a_problem_both_are_0_and_of_a_collapsed_policy_one(name, monkeypatch):
    problem, tokenizer = problems()[name], lab.problem_tokenizer()
    base = Policy(Transformer(SIZES).initialise(seeded()), lab.problem_sampler(problem, tokenizer, 1.0))
    reference = lab.TableReference(base, problem, tokenizer)
    merged = exact.build_graph(problem, merged=True)
    prompts = lab.prompt_batch(
        problem, tokenizer, [p for p in range(problem.prompts) for _ in range(24)], torch.device("cpu")
    )
    prompts = PromptBatch(prompts.ids, prompts.mask, prompts.group // 24, prompts.texts, prompts.columns)
    sampling = Sampling(tokenizer, problem.horizon, 0)

    def judge(rollout):
        which = rollout.columns["exact_prompt"]
        tokens = [problem.response(text) for text in rollout.completions]
        scores = torch.tensor([problem.reward(p, t) for p, t in zip(which, tokens, strict=True)])
        return scores, scores

    best = table(base, problem, tokenizer, exact.optimum(merged, problem.beta)[0])
    optimum = measure(base, best, reference, prompts, judge, sampling)
    assert optimum.residual_std(problem.beta) < 1e-5  # on whatever responses: those of the base
    assert optimum.residual_std(0.0) > 0.1
    collapsed = table(
        base,
        problem,
        tokenizer,
        torch.where(merged.log_ref == merged.log_ref.max(dim=1, keepdim=True).values, 0.0, -9.0),
    )
    assert measure(base, collapsed, reference, prompts, judge, sampling).residual_std(problem.beta) > 0.5
    rows = list(Sampling(tokenizer, problem.horizon, 0).rollouts(base, prompts, "objective"))
    same = [rollout.rows(torch.tensor([0] * 8)) for rollout in rows[:1]]
    monkeypatch.setattr(evaluate, "generate", lambda *_, **__: same[0])
    one = PromptBatch(*(x[:8] for x in (prompts.ids, prompts.mask, prompts.group, prompts.texts)), prompts.columns)
    assert measure(base, collapsed, reference, one, judge, sampling).residual_std(problem.beta) == 0.0
