"""Before against after: equal sides, the exact KL by enumeration, every number of the summary by hand."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.models.families import TransformerConfig
from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.rewards.shape import Scores
from minirlhf.stages import divergence
from minirlhf.stages import evaluate as module
from minirlhf.stages.divergence import sequence_kl, summed_kl
from minirlhf.stages.evaluate import (
    Sampling,
    bigrams_of,
    bootstrap_interval,
    distinct_share,
    evaluate,
)
from minirlhf.streams import generator
from tests.helpers import BOS, EOS, PAD, Letters, seeded, small_policy, small_trunk

TEXTS = ("ab", "c", "dab", "fgh", "j", "jj", "ca")


def prompts(texts=TEXTS) -> PromptBatch:
    return PromptBatch.build(texts, [{} for _ in texts], Letters())


def share_of_c(rollout: Rollout) -> Scores:
    scores = torch.tensor([text.count("c") / max(1, len(text)) for text in rollout.completions])
    return Scores(scores, torch.ones(len(rollout), dtype=torch.bool), torch.zeros(rollout.mask.shape))


def evaluated(policy, reference, reward=share_of_c, seed=0, texts=TEXTS, tokens=6):
    def rewards(rollouts):
        return [reward(rollout) for rollout in rollouts]

    return evaluate(policy, reference, prompts(texts), rewards, Sampling(Letters(), tokens, seed), 200)


# ---- pairing -----------------------------------------------------------------------------------------------


def test_a_policy_that_is_the_reference_gains_exactly_nothing(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)  # 7 prompts in three parts, each with its own random numbers
    policy = small_policy()
    result = evaluated(policy, Reference(policy))
    summary = result.summary
    assert summary["score_gain"] == 0.0
    assert summary["score_gain_ci95"] == [0.0, 0.0]
    assert summary["win_rate"] == 0.5
    assert summary["ties"] == 7
    assert summary["kl_nats_per_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert summary["policy"] == summary["reference"]
    assert summary["prompts"] == 7
    for row, text in zip(result.rows, TEXTS, strict=True):
        assert row["prompt"] == text
        assert row["policy"] == row["reference"]
        assert row["policy_score"] == row["reference_score"]
    assert len({row["policy"] for row in result.rows}) > 3


@pytest.mark.usefixtures("double")
def test_the_kl_of_a_policy_to_itself_is_zero_in_float64():
    policy = small_policy()
    assert evaluated(policy, Reference(policy)).summary["kl_nats_per_sequence"] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("together", [1, 1 << 26])
def test_what_a_row_writes_does_not_depend_on_how_many_are_decoded_together(monkeypatch, together):
    """Seven prompts as one batch or as three: the numbers of each three rows come from one stream."""
    made, sample = [], module.generate

    def counted(*arguments, **options):
        made.append(len(arguments[1].texts))
        return sample(*arguments, **options)

    monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(module, "TOGETHER", together)
    monkeypatch.setattr(module, "generate", counted)
    rollouts = list(Sampling(Letters(), 6, 0).rollouts(small_policy(), prompts(), "eval"))
    assert made == ([3, 3, 1] if together == 1 else [7])
    parts = [
        sample(small_policy(), part, Letters(), max_new_tokens=6, generator=generator(0, "eval", index))
        for index, part in enumerate(prompts().parts(3))
    ]
    assert [t for r in rollouts for t in r.completions] == [t for r in parts for t in r.completions]


def test_as_many_rows_are_decoded_together_as_64_mib_hold():
    """A row of 10 tokens: 2 x 2 layers x 2 heads x 4 x 10 x 4 bytes of keys and values, 16 x 13 of logits."""
    config = TransformerConfig(13, 8, 16, 2, 2, 2, 64)
    assert module.streams_at_a_time(config, 10, 4) == (1 << 26) // (64 * (1280 + 208))
    assert module.streams_at_a_time(config, 1 << 20, 4) == 1


def test_the_reference_side_does_not_depend_on_the_policy_and_the_seed_decides():
    base = Reference(small_policy())
    one, two = evaluated(small_policy(1), base), evaluated(small_policy(2), base)
    assert [row["reference"] for row in one.rows] == [row["reference"] for row in two.rows]
    assert [row["policy"] for row in one.rows] != [row["policy"] for row in two.rows]
    sides = [dict(result.summary["reference"]) for result in (one, two)]
    for side in sides:
        side.pop("distinct_2")  # at equal numbers of bigrams, so the other side's number is in it
    assert sides[0] == sides[1]
    again, other = evaluated(small_policy(1), base), evaluated(small_policy(1), base, seed=1)
    assert one == again
    assert [row["reference"] for row in one.rows] != [row["reference"] for row in other.rows]


# ---- KL ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
def test_responses_pass_a_few_at_a_time_and_have_the_kl_that_they_have_together(monkeypatch):
    policy, reference, seen = small_policy(1), Reference(small_policy(2)), []
    (rollout,) = Sampling(Letters(), 6, 0).rollouts(policy, prompts(), "eval")
    whole = (policy.forward_pass(rollout), reference.forward_pass(rollout), rollout.mask)
    monkeypatch.setattr(divergence, "PASS", 3)
    forward = Policy.forward_pass

    def counted(self, part, **options):
        seen.append(len(part))
        return forward(self, part, **options)

    monkeypatch.setattr(Policy, "forward_pass", counted)
    assert torch.allclose(sequence_kl(policy, reference, rollout), summed_kl(*whole), atol=1e-12)
    assert seen == [3, 3, 3, 3, 1, 1]  # seven responses, each part by the policy and by the reference


def narrow(seed: int) -> Policy:
    """Only EOS, c and d can be sampled: 7 responses of up to two tokens, 15 of up to three."""
    banned = tuple(i for i in range(13) if i not in (EOS, 5, 6))
    return Policy(small_trunk(seed), Sampler(0.8, banned=banned, stops=(EOS,)))


def every_response(horizon: int) -> list[list[int]]:
    done, open_rows = [], [[]]
    for _ in range(horizon):
        grown = [[*row, token] for row in open_rows for token in (EOS, 5, 6)]
        done += [row for row in grown if row[-1] == EOS]
        open_rows = [row for row in grown if row[-1] != EOS]
    return done + open_rows


def next_token(policy: Policy, ids: list[int]) -> dict[int, float]:
    """log-probabilities of EOS, c, d by an unpadded forward pass, at temperature 0.8."""
    with torch.no_grad():
        logits = policy.model.embed_tokens.weight @ policy.model(torch.tensor([ids]))[0, -1] / 0.8
    kept = {token: logits[token].item() for token in (EOS, 5, 6)}
    total = math.log(sum(math.exp(x) for x in kept.values()))
    return {token: x - total for token, x in kept.items()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_the_sequence_kl_against_enumeration(horizon):
    """Each response's number is the sum of its states' KLs, and their mean under the policy is KL(pi, ref) of whole
    responses, which knows nothing of tokens: sum over y of pi(y) log(pi(y) / ref(y))."""
    policy, base = narrow(1), narrow(2)
    prompt, rows = [BOS, 3, 4], every_response(horizon)
    assert len(rows) == 2 ** (horizon + 1) - 1
    ids = torch.tensor([row + [PAD] * (horizon - len(row)) for row in rows])
    start = torch.tensor([prompt]).expand(len(rows), -1)
    blank, names = torch.zeros(len(rows), dtype=torch.long), ("",) * len(rows)
    rollout = Rollout(
        start, start > 0, ids, ids != PAD, ids != PAD, (ids == EOS).any(dim=1), blank, names, names, {}
    )  # fmt: skip
    got = sequence_kl(policy, Reference(base), rollout)
    log_pi, log_ref = [], []
    for row, value in zip(rows, got.tolist(), strict=True):
        total, a, b = 0.0, 0.0, 0.0
        for t, token in enumerate(row):
            p, q = next_token(policy, prompt + row[:t]), next_token(base, prompt + row[:t])
            total += sum(math.exp(p[x]) * (p[x] - q[x]) for x in p)
            a, b = a + p[token], b + q[token]
        assert value == pytest.approx(total, abs=1e-10)
        log_pi.append(a)
        log_ref.append(b)
    assert sum(math.exp(a) for a in log_pi) == pytest.approx(1, abs=1e-10)
    whole = sum(math.exp(a) * (a - b) for a, b in zip(log_pi, log_ref, strict=True))
    mean = sum(math.exp(a) * kl for a, kl in zip(log_pi, got.tolist(), strict=True))
    assert whole > 0.1
    assert mean == pytest.approx(whole, abs=1e-10)


def test_the_reported_kl_is_that_of_the_policys_own_responses():
    policy, base = small_policy(1), Reference(small_policy(2))
    summary = evaluated(policy, base).summary
    batch = prompts()
    rollout = module.generate(policy, batch, Letters(), max_new_tokens=6, generator=module.generator(0, "eval", 0))
    expected = sequence_kl(policy, base, rollout).mean().item()
    assert summary["kl_nats_per_sequence"] == pytest.approx(expected, rel=1e-5)
    assert summary["kl_nats_per_sequence"] > 0.1


# ---- the summary by hand -----------------------------------------------------------------------------------

BEFORE = ["abc", "abcab", "dd", "f"]  # the last one ends with EOS, and so does the second
AFTER = ["aaaa", "ab", "", "abab"]


def told(texts, ended) -> Rollout:
    """Responses as given; those that ended carry EOS."""
    rows = [Letters().encode(text) + ([EOS] if end else []) for text, end in zip(texts, ended, strict=True)]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    start = torch.full((len(rows), 1), BOS)
    return Rollout(
        start, start > 0, ids, ids != PAD, ids != PAD, torch.tensor(ended), torch.arange(len(rows)),
        tuple(f"p{i}" for i in range(len(rows))), tuple(texts), {},
    )  # fmt: skip


def summary_of(monkeypatch, scores: dict[str, float | None]):
    """`evaluate` of BEFORE (reference) and AFTER (policy), with a score for each text; None = nobody scored it."""
    policy, reference = small_policy(1), Reference(small_policy(2))
    rollouts = {
        id(reference.policy): told(BEFORE, [False, True, False, True]),
        id(policy): told(AFTER, [False, True, True, False]),
    }
    monkeypatch.setattr(module, "generate", lambda model, *_, **__: rollouts[id(model)])

    def reward(rollouts):
        (rollout,) = rollouts
        given = [scores[text] for text in rollout.completions]
        valid = torch.tensor([x is not None for x in given])
        junk = torch.tensor([99.0 if x is None else x for x in given])
        return [Scores(junk, valid, torch.zeros(rollout.mask.shape))]

    return evaluate(policy, reference, prompts(TEXTS[:4]), reward, Sampling(Letters(), 6, 0), 100)


SCORES = {"abc": 1.0, "abcab": 2.0, "dd": 4.0, "f": 5.0} | {"aaaa": 3.0, "ab": 2.0, "": 0.5, "abab": 6.0}


def test_every_number_of_the_summary_by_hand(monkeypatch):
    result = summary_of(monkeypatch, SCORES)
    before, after = result.summary["reference"], result.summary["policy"]
    # scores 1, 2, 4, 5: mean 3, squares about it 4 1 1 4; 90 %: 0.7 of the way from the 3rd to the 4th
    assert before["score_mean"] == pytest.approx(3.0)
    assert before["score_std"] == pytest.approx(math.sqrt(10 / 3))
    assert before["score_p90"] == pytest.approx(4.7)
    assert before["length_mean"] == pytest.approx((3 + 6 + 2 + 2) / 4)  # tokens, EOS counted
    assert before["eos_rate"] == 0.5
    assert before["distinct_share"] == 1.0
    assert after["score_mean"] == pytest.approx(11.5 / 4)
    assert after["score_p90"] == pytest.approx(3 + 0.7 * 3)  # 0.5, 2, 3, 6
    assert after["length_mean"] == pytest.approx((4 + 3 + 1 + 4) / 4)
    assert after["eos_rate"] == 0.5
    # bigrams: before ab bc | ab bc ca ab | dd (7); after aa aa aa | ab | ab ba ab (7)
    assert before["distinct_2"] == pytest.approx(4 / 7)
    assert after["distinct_2"] == pytest.approx(3 / 7)
    assert result.summary["score_gain"] == pytest.approx((2 + 0 - 3.5 + 1) / 4)
    assert result.summary["win_rate"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert result.summary["ties"] == 1
    # gains 2, 0, -3.5, 1: mean -0.125, squares about it 4.516 0.016 11.391 1.266, t of three degrees of freedom 3.1824
    half = 3.1824 * math.sqrt(17.1875 / 3) / 2
    assert result.summary["score_gain_ci95"] == pytest.approx([-0.125 - half, -0.125 + half], abs=1e-3)
    assert [row["policy_score"] for row in result.rows] == [3.0, 2.0, 0.5, 6.0]
    assert [row["reference"] for row in result.rows] == BEFORE
    assert [row["policy"] for row in result.rows] == AFTER


def test_a_gain_of_rounding_is_a_draw():
    before = torch.tensor([1.0, 1.0, 1e-9, float("nan"), 2.0])
    after = torch.tensor([1 + 1e-7, 1.001, 3e-9, 1.0, float("nan")], dtype=torch.float64)
    # 1e-9 was rounded to float32 before it was subtracted, hence 1e-6; abs=0, because 0 must be 0.
    assert module.gains(before.double(), after).tolist() == pytest.approx([0, 0.001, 2e-9], rel=1e-6, abs=0)


def test_what_nobody_scored_is_null_and_leaves_every_mean_and_its_pair(monkeypatch):
    result = summary_of(monkeypatch, SCORES | {"abc": None, "": None})
    assert result.summary["reference"]["score_mean"] == pytest.approx(11 / 3)  # 2, 4, 5
    assert result.summary["policy"]["score_mean"] == pytest.approx(11 / 3)  # 3, 2, 6
    assert result.summary["score_gain"] == pytest.approx((0 + 1) / 2)  # the pairs that both sides have
    assert result.summary["win_rate"] == pytest.approx((0.5 + 1) / 2)
    assert [row["reference_score"] for row in result.rows] == [None, 2.0, 4.0, 5.0]
    assert [row["policy_score"] for row in result.rows] == [3.0, 2.0, None, 6.0]
    assert result.summary["score_pairs"] == 2  # the second and the fourth
    assert result.summary["reference"]["length_mean"] == pytest.approx(13 / 4)  # a text is a text


def test_what_was_not_measured_is_null_and_never_0(monkeypatch):
    result = summary_of(monkeypatch, dict.fromkeys(SCORES))
    for name in ("score_gain", "score_gain_ci95", "win_rate"):
        assert result.summary[name] is None, name
    for side in ("reference", "policy"):
        assert [result.summary[side][f"score_{name}"] for name in ("mean", "std", "p90")] == [None, None, None]
    assert {row["policy_score"] for row in result.rows} == {None}
    assert result.summary["policy"]["distinct_2"] == pytest.approx(3 / 7)  # needs no score


def test_one_prompt_with_both_scores_has_a_gain_but_neither_spread_nor_interval(monkeypatch):
    result = summary_of(monkeypatch, dict.fromkeys(SCORES) | {"abc": 1.0, "aaaa": 3.0, "ab": 0.0})
    assert result.summary["score_gain"] == 2.0  # abc -> aaaa; the score of ab has no partner
    assert result.summary["score_gain_ci95"] is None
    assert result.summary["win_rate"] == 1.0
    assert result.summary["reference"]["score_std"] is None
    assert result.summary["policy"]["score_std"] == pytest.approx(math.sqrt(4.5))


def test_distinct_2_is_taken_at_equal_numbers_of_bigrams(monkeypatch):
    """A side with fewer bigrams repeats less: 7 against 3 are compared at the first 3 of each."""
    monkeypatch.setattr("tests.stages.test_evaluate.AFTER", ["ab", "ab", "bc", ""])
    result = summary_of(monkeypatch, dict.fromkeys(SCORES) | {"bc": None})
    assert result.summary["policy"]["distinct_2"] == pytest.approx(2 / 3)  # ab ab bc
    assert result.summary["reference"]["distinct_2"] == pytest.approx(2 / 3)  # ab bc ab of seven
    assert result.summary["policy"]["distinct_share"] == pytest.approx(3 / 4)


def test_bigrams_stay_inside_a_response_and_leave_eos_out():
    assert bigrams_of([[3, 4, EOS], [5], [], [6, 6, 6]], [True, False, False, False]) == [(3, 4), (6, 6), (6, 6)]
    assert distinct_share([]) is None  # such as bigrams of responses of one token
    assert distinct_share(["a", "a", "b", "a"]) == 0.5


# ---- the interval ------------------------------------------------------------------------------------------


def test_the_bootstrap_interval_on_data_whose_answer_is_known():
    assert bootstrap_interval(torch.full((9,), 0.3).double(), 100, seeded()) == pytest.approx([0.3, 0.3])
    # 16 prompts, half of them 0 and half 1: the std is sqrt(16 x 1/4 / 15), t of 15 degrees of freedom 2.1314
    half = 2.1314 * math.sqrt(4 / 15) / 4
    few = torch.tensor([0.0, 1.0] * 8).double()
    assert bootstrap_interval(few, 500, seeded()) == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    for known in ([], [0.3]):  # resampling one number gives it again, however wrong it is
        assert bootstrap_interval(torch.tensor(known).double(), 100, seeded()) is None
    # 400 numbers of mean 2 and population std 3: the mean's own error is 3/20, 95 % of it 1.96 times that
    gains = 2 + 3 * torch.tensor([1.0, -1.0] * 200).double()
    # The end of an interval from 4,000 resamples is known to 0.15 x sqrt(0.025 x 0.975 / 4000) / 0.058 = 0.006, and the
    # means of these numbers are 0.015 apart.
    low, high = bootstrap_interval(gains, 4000, seeded())
    assert (low, high) == pytest.approx((2 - 1.96 * 0.15, 2 + 1.96 * 0.15), abs=0.03)
    assert bootstrap_interval(gains, 4000, seeded()) == [low, high]


def test_a_policy_that_was_pushed_towards_the_reward_shows_it():
    """The embedding of c is made larger along the mean state: more c, an interval above 0, more wins than losses."""
    base = small_policy()
    pushed = small_policy()
    reference = Reference(base)
    rollout = module.generate(base, prompts(), Letters(), max_new_tokens=6, generator=seeded())
    with torch.no_grad():
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], dim=1)
        state = pushed.model(ids).flatten(0, 1).mean(dim=0)
        pushed.model.embed_tokens.weight[5] += 3 * state / state.norm()
    summary = evaluated(pushed, reference, texts=TEXTS * 10).summary
    assert summary["policy"]["score_mean"] > summary["reference"]["score_mean"]
    assert summary["score_gain"] == pytest.approx(
        summary["policy"]["score_mean"] - summary["reference"]["score_mean"], abs=1e-6
    )
    assert summary["score_gain_ci95"][0] > 0
    assert summary["win_rate"] > 0.5
    assert summary["kl_nats_per_sequence"] > 0


def test_a_masked_token_is_not_in_the_kl():
    policy, base = small_policy(1), Reference(small_policy(2))
    rollout = told(BEFORE, [False, True, False, True])
    whole = sequence_kl(policy, base, rollout)
    holes = rollout.mask.clone()
    holes[:, 0] = False
    part = sequence_kl(policy, base, replace(rollout, mask=holes))
    first = replace(rollout, mask=rollout.mask & ~holes)
    assert torch.allclose(whole, part + sequence_kl(policy, base, first))
    assert (part < whole).all()
