"""Which measure decides a comparison: J where it is one and the same, else what is left, with the reason."""

import pytest

from minirlhf.studies.grid import grid, resolve_cells, variations
from minirlhf.studies.judged import judged, objective_settings
from minirlhf.studies.summary import Outcome

REVIEWS = {"score_gain": 1.0, "objective": 1.0, "true_score_mean": 1.0}
NO_TRUTH = {"score_gain": 1.0, "objective": 1.0}
LAB = {**NO_TRUTH, "optimality": 1.0}


def decided(presets, vary, measures, *, sets=(), seeds=1, seeded=()):
    """Measure and sentence for runs that all have these measures."""
    variants = grid(presets, variations(vary))
    cells = resolve_cells(variants, seeds, options={}, sets=sets, seeded=seeded)
    found = judged(cells, {variant: Outcome({0: measures}) for variant in variants})
    return found["measure"], found["why"]


def tiny(*sets):
    return resolve_cells(grid(["tiny"], {}), 1, options={}, sets=sets)[0].config


def test_j_decides_between_ways_to_optimise_it():
    """Estimator, place, advantage, loss, learning rate and critic change nothing of what J means."""
    for vary in ("kl.estimator=k1,k3", "kl.place=reward,both", "advantage.function=gae,rloo", "loss.policy=pg,ratio"):
        sets = ["ppo.responses_per_prompt=4"]
        measure, why = decided(["tiny"], [vary], REVIEWS, sets=sets)
        assert measure == "objective"
        assert why == (
            "Variants are compared in J = score - beta KL, by the differences of the same seed; each J is from 8 "
            "responses to each of up to 16 held-out prompts."
        )
    assert decided(["tiny"], ["ppo.lr=1e-4,1e-3", "model.separate_critic=true,false"], REVIEWS)[0] == "objective"


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["kl.coef=0.1,0.2"], "because kl.coef differs"),
        (["rewards.sentiment.weight=1.0,2.0"], "because rewards.sentiment.weight differs"),
        (["model.hidden_size=32,64"], "because model.hidden_size differs"),
        (["sampler.temperature=0.7,1.0"], "because sampler.temperature differs"),
        (["evaluation.prompts=16,32"], "because evaluation.prompts differs"),
        (["evaluation.residual_prompts=4,16"], "because evaluation.residual_prompts differs"),
        (["ppo.score_clip=0.01,10"], "because ppo.score_clip differs"),
        (["ppo.score_normalize=true,false"], "because ppo.score_normalize differs"),
        (["truncation.rule=keep,mask"], "because truncation.rule differs"),
        (["kl.coef=0.1,0.2", "pretrain.steps=5,6"], "because pretrain.steps, kl.coef differ"),
    ],
)
def test_where_j_means_something_else_in_each_the_true_score_decides(vary, said):
    measure, why = decided(["tiny"], vary, REVIEWS)
    assert measure == "true_score_mean"
    assert "in the true score, by the differences of the same seed: J = score - beta KL is not the same" in why
    assert why.endswith(f"{said}.")


def test_the_value_of_a_rule_counts_where_the_rule_takes_one():
    vary = ["truncation.value=0.0,1.0"]
    measure, why = decided(["tiny"], vary, REVIEWS, sets=["truncation.rule=penalty"])
    assert (measure, why.endswith("because truncation.value differs.")) == ("true_score_mean", True)
    assert not any(key.startswith("truncation.value") for key in objective_settings(tiny("truncation.rule=keep")))
    assert objective_settings(tiny("truncation.rule=replace", "truncation.value=1.0"))["truncation.value"] == 1.0


def test_the_responses_that_j_is_from_may_differ():
    measure, why = decided(["tiny"], ["evaluation.residual_responses=2,8"], REVIEWS)
    assert measure == "objective"
    assert why.endswith("each J is from 2 or 8 responses to each of up to 16 held-out prompts.")


def test_without_a_true_score_the_gain_decides_if_the_rewards_are_the_same():
    measure, why = decided(["tiny"], ["kl.coef=0.1,0.2"], NO_TRUTH)
    assert measure == "score_gain"
    assert "in the score gain, which does not count the KL" in why
    measure, why = decided(["tiny"], ["rewards.sentiment.weight=1.0,2.0"], NO_TRUTH)
    assert measure is None
    assert why.startswith("Nothing says which variant is better: J = score - beta KL is not the same for all of them")


def test_a_reward_model_that_is_trained_depends_on_what_it_begins_with():
    assert decided(["preferences"], ["kl.coef=0.1,0.2"], NO_TRUTH)[0] == "score_gain"
    assert decided(["preferences"], ["pretrain.steps=5,6"], NO_TRUTH)[0] is None
    assert decided(["tiny"], ["pretrain.steps=5,6"], NO_TRUTH)[0] == "score_gain"


def test_an_adaptive_beta_ends_elsewhere_in_every_run():
    sets = ["kl.controller=adaptive", "kl.target=1.0"]
    measure, why = decided(["tiny"], ["kl.estimator=k1,k3"], REVIEWS, sets=sets)
    assert measure == "true_score_mean"
    assert why.endswith("because each ends with a beta of its own (kl.controller = adaptive).")


def test_on_the_lab_f_decides_and_says_if_the_optima_differ():
    """J of a problem is that of its table: the transformer's size changes nothing of it."""
    measure, why = decided(["exact"], ["model.hidden_size=32,64"], LAB)
    assert (measure, why[-19:]) == ("optimality", "s of the same seed.")
    measure, why = decided(["exact"], ["kl.coef=0.1,0.2"], LAB)
    assert (measure, why[-33:]) == ("optimality", "; each has an optimum of its own.")
    nothing_to_gain = {**LAB, "optimality": None}
    assert decided(["exact"], ["kl.estimator=k1,k3"], nothing_to_gain)[0] == "objective"
    assert decided(["exact", "tiny"], [], NO_TRUTH)[0] is None


def test_a_measure_decides_only_if_every_variant_has_it():
    variants = grid(["tiny"], variations(["kl.estimator=k1,k3"]))
    cells = resolve_cells(variants, 1, options={}, sets=())
    one, other = Outcome({0: REVIEWS}), Outcome({0: {**REVIEWS, "objective": None}})
    found = judged(cells, dict(zip(variants, (one, other), strict=True)))
    assert found["measure"] == "true_score_mean"
    assert found["why"].endswith("J = score - beta KL is not known of all of them.")
    failed = judged(cells, dict(zip(variants, (one, Outcome()), strict=True)))
    assert failed["measure"] == "objective"  # of a variant that has failed nothing is known
    assert judged(cells, {variants[0]: Outcome(), variants[1]: Outcome()})["measure"] is None


def test_keys_that_follow_the_seed_are_no_difference():
    seeded = ("pretrain.seed", "sft.seed", "reward_model.seed")
    assert decided(["preferences"], ["kl.place=reward,both"], REVIEWS, seeds=3, seeded=seeded)[0] == "objective"


def test_what_a_run_does_not_use_is_no_part_of_its_objective():
    (plain, trained) = (resolve_cells(grid([p], {}), 1, options={}, sets=())[0].config for p in ("tiny", "preferences"))
    assert not any(key.startswith(("sft.", "reward_model.")) for key in objective_settings(plain))
    assert {"sft.epochs", "reward_model.pairs", "corpus.preferences"} <= set(objective_settings(trained))
