"""Sentences on what a run reached: each outcome, what is not known, and no victory that is not there."""

import pytest

from minirlhf.report.of_objective import objective_about, objective_rows, objective_sentences, true_score_sentences

BEST = {"n": 16, "kl": 1.8, "score": 0.59, "objective": 0.42, "policy_lead": -0.07, "policy_lead_ci95": [-0.12, -0.02]}
FOUND = {
    "beta": 0.09, "prompts": 64, "reference": 0.01, "policy": 0.35, "policy_kl": 2.0, "best_of_n": [BEST],
    "policy_gain": 0.34, "policy_gain_ci95": [0.3, 0.38], "best_known": {"what": "best of 16", "objective": 0.42},
    "share_at_most": 0.829, "not_beaten": [16], "verdict": {"against": "best of 16", "outcome": "beaten"},
}  # fmt: skip


def said(**changed):
    return list(objective_sentences({"objective": FOUND | changed}))


def test_a_run_that_is_beaten_by_sampling_says_so_first():
    assert said() == [
        "Best of 16 of the reference's own responses has the higher objective (+0.420 against +0.350; policy minus "
        "that: -0.070 (95 % interval -0.120 to -0.020)): on this objective the run is beaten by sampling.",
        "Of what could be gained in J the policy gained about 83% at most, an estimate from 64 prompts: the best J "
        "known is +0.420, that of best of 16, and the optimum is at least that.",
    ]


@pytest.mark.parametrize("outcome", ["not told apart", None, 7, "won"])
def test_no_victory_is_claimed_that_is_not_there(outcome):
    best = BEST | {"policy_lead_ci95": [-0.12, 0.02]}
    first = said(best_of_n=[best], verdict={"against": "best of 16", "outcome": outcome})[0]
    assert first.startswith("The policy and best of 16 of the reference's own responses are not told apart (+0.350")
    assert "the run has not beaten best of 16. More prompts" in first
    assert "beats" not in first


def test_a_share_is_named_only_where_chance_does_not_explain_it():
    for changed in (
        {"verdict": {"against": "best of 16", "outcome": "not told apart"}},
        {"policy_gain_ci95": [-0.1, 0.5]},
        {"policy_gain_ci95": None},
        {"share_at_most": -0.2},
    ):
        assert not any("at most" in text for text in said(**changed))


def test_beside_f_of_a_problem_it_is_the_run_s_own_objective():
    both = {"objective": FOUND, "exact": {"optimality": 0.2}}
    assert "gained in the run's own objective the policy gained about 83%" in list(objective_sentences(both))[1]


def test_a_run_that_beats_sampling_says_against_what():
    first, second = said(
        policy=0.5,
        verdict={"against": "best of 16", "outcome": "beats"},
        best_known={"what": "policy", "objective": 0.5},
        share_at_most=1.0,
    )
    assert first.startswith(
        "The policy has a higher objective than best of 16 of the reference's own responses (+0.500"
    )
    assert first.endswith("on this objective the run beats best of 16. Best of more than 16 was not measured.")
    assert "sampling" not in first  # a larger n may beat it
    four = {"n": 4, "objective": 0.45}  # of few prompts the means need not rise with n
    better = said(best_of_n=[four, BEST], verdict={"against": "best of 4", "outcome": "beats"})[0]
    assert better.endswith("the run beats best of 4. Best of more than 16 was not measured.")
    assert second == "Nothing that was measured has a higher J; the optimum is not known."


def test_a_difference_of_rounding_is_called_one():
    """Its interval leaves out 0, but the scores are so large that this is no more than their rounding."""
    tied = {"n": 16, "objective": 1000.0, "policy_lead": -0.001, "policy_lead_ci95": [-0.001, -0.001]}
    found = said(best_of_n=[tied], verdict={"against": "best of 16", "outcome": "not told apart"})[0]
    assert found.endswith("not beaten best of 16. The difference is no more than the rounding of such scores.")


def test_what_would_tell_is_named_and_what_nothing_would_is_not():
    """An evaluation of 64 prompts measures J on 64: more of them need more held-out prompts first."""
    open_ = {"best_of_n": [BEST | {"policy_lead_ci95": [-0.12, 0.02]}], "verdict": {"against": "best of 16"}}
    for prompts, named in ((64, "evaluation.prompts and evaluation."), (65, "evaluation."), (None, "evaluation.")):
        found = {"objective": FOUND | open_, "prompts": prompts}
        assert next(objective_sentences(found)).endswith(f"More prompts may tell: {named}residual_prompts.")
    equal = open_ | {"best_of_n": [BEST | {"policy_lead": 0.0, "policy_lead_ci95": [0.0, 0.0]}]}
    assert said(**equal)[0].endswith("They are equal on every prompt.")


def test_small_and_large_numbers_show_what_decides():
    tiny = BEST | {"objective": 3e-7, "policy_lead": -2e-7, "policy_lead_ci95": [-3e-7, -1e-7]}
    first = said(policy=1e-7, best_of_n=[tiny])[0]
    assert "(+3.00e-07 against +1.00e-07; policy minus that: -2.00e-07 (95 % interval -3.00e-07 to -1.00e-07))" in first
    large = BEST | {"objective": 2e12, "policy_lead": -1e12, "policy_lead_ci95": [-1.5e12, -5e11]}
    assert "(+2.00e+12 against +1.00e+12; policy minus that: -1.00e+12" in said(policy=1e12, best_of_n=[large])[0]


def test_without_best_of_n_it_is_not_known_what_sampling_would_do():
    plain = {"best_of_n": [], "not_beaten": [], "verdict": {"against": "reference", "outcome": "beats"}}
    first, second = said(**plain)
    assert first.endswith("on this objective the run beats the model that it began with.")
    assert "+0.340 (95 % interval +0.300 to +0.380)" in first
    assert second.startswith("Best-of-n of the reference was not measured")
    assert "more than" not in first
    lost = said(**plain | {"verdict": {"against": "reference", "outcome": "beaten"}})[0]
    assert lost.startswith("The reference has the higher objective (+0.010 against +0.350")


def test_what_is_not_known_has_a_reason_and_of_a_known_optimum_f_says_it_all():
    assert list(objective_sentences({"objective": None, "objective_unknown": "no score"})) == [
        "J = score - beta KL is not known, nor what beats this run: no score."
    ]
    assert list(objective_sentences({})) == []
    exact = {k: v for k, v in FOUND.items() if k != "verdict"} | {
        "best_of_n": [],
        "best_known": {"what": "optimum", "objective": 1.7},
    }
    assert list(objective_sentences({"objective": exact})) == []
    assert objective_rows({"objective": exact})[-1] == ("optimum", None, None, 1.7)


def test_j_says_which_prompts_it_lost_and_which_score_is_in_it():
    plain = objective_about({"objective": FOUND | {"prompts_left_out": 0}})
    what = "J = score - 0.09 KL, what a run with these rewards maximises, on 64 prompts"
    assert plain == f"{what}, several responses to each; higher is better"
    rules = {"score_rules": ["ppo.score_clip = 1", "truncation.rule = mask"], "prompts_left_out": 3}
    assert objective_about({"objective": FOUND | rules}) == (
        f"{plain}; its score is after ppo.score_clip = 1 and truncation.rule = mask; prompts left out, since a "
        "response of theirs has no score: 3"
    )
    assert objective_about({"objective": FOUND | {"score_rules": 3, "prompts_left_out": "x"}}) == plain


def test_the_rows_by_hand():
    """The policy's score is J + beta KL: 0.35 + 0.09 x 2."""
    assert objective_rows({"objective": FOUND}) == [
        ("reference", 0.01, 0.0, 0.01),
        ("best of 16", 0.59, 1.8, 0.42),
        ("policy", pytest.approx(0.53), 2.0, 0.35),
    ]
    assert objective_rows({}) == []
    large = FOUND | {"policy": 12345678.5, "policy_kl": 2.0, "beta": 0.25}
    assert objective_rows({"objective": large})[-1] == ("policy", 12345679.0, 2.0, 12345678.5)  # every digit of it
    assert objective_rows({"objective": large | {"beta": None}})[-1] == ("policy", None, 2.0, 12345678.5)


def test_the_true_score_says_what_was_rewarded_of_it():
    known = {"true_score_gain": 1.9, "true_score_gain_ci95": [1.7, 2.1], "true_score_gain_unrewarded": 0.4}
    seen = {"true_score_rewarded": ["sentiment"], "true_score_seen": "sentiment is rewarded in this run, too"}
    about, gain, without = true_score_sentences(known | seen)
    assert about.endswith("; higher is better; sentiment is rewarded in this run, too")
    assert gain == "true score gain +1.900 (95 % interval +1.700 to +2.100)"
    assert without == "without sentiment: +0.400"
    assert len(list(true_score_sentences(known))) == 2  # an older evaluation
    assert list(true_score_sentences({})) == []
