"""Results of the audit against closed forms and enumeration by hand; components that are wrong on purpose."""

import itertools
import math

import pytest
import torch

from minirlhf.builtin.advantages import gae, mc, register_advantage_functions
from minirlhf.builtin.kl import register_kl_estimators
from minirlhf.builtin.losses import ratio, register_policy_losses
from minirlhf.config.layers import load_config
from minirlhf.exact import graph as exact
from minirlhf.studies.audit.advantage import advantage_gradient, audit_advantage, objective_gradient
from minirlhf.studies.audit.kl import SAMPLES, audit_kl
from minirlhf.studies.audit.loss import audit_loss
from minirlhf.studies.audit.scene import Scene, all_groups, moved, percent
from tests.helpers import built

CONFIG, _ = load_config()
SCENE = Scene.of()
KL, ADVANTAGES, LOSSES = register_kl_estimators(), register_advantage_functions(), register_policy_losses()
EXACT = 1e-6


def of_kl(function, config=CONFIG, whitening="batch"):
    """Audit a KL estimator: {place: row} of the gradients, and the other rows."""
    rows = list(audit_kl(built("kl", function), config, whitening, SCENE))
    return {row["place"]: row for row in rows if "place" in row}, [row for row in rows if "place" not in row]


def of_advantage(function, whitening=None, config=CONFIG):
    """Audit an advantage function: {(lam or n, V): row}."""
    component = built("advantage", function)
    chosen = whitening or ("batch" if component.names("values") else "none")
    rows = list(audit_advantage(component, config, chosen, SCENE))
    return {(*row["options"].values(), row["values"]): row for row in rows}


def of_loss(function, config=CONFIG):
    """Audit a loss: {drift: row}."""
    return {row["distance"]: row for row in audit_loss(built("loss", function), config, "batch", SCENE)}


# ---- KL ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimators():
    return {name: of_kl(function) for name, function in KL.items()}


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_schulmans_table_within_four_standard_errors(estimators, mu):
    closed = {  # bias and standard deviation relative to the KL
        "k1": (0, 2 / mu),
        "k2": (mu**2 / 4, math.sqrt(2 + mu**2)),
        "k3": (0, 2 * math.sqrt(math.exp(mu**2) - 1 - mu**2) / mu**2),
    }
    for name, (bias, std) in closed.items():
        (row,) = [
            r for r in estimators[name][1] if r["table"] == "schulman" and r["distance"] == pytest.approx(mu**2 / 2)
        ]
        assert abs(row["value_bias"] - bias) < 4 * row["value_bias_se"]
        assert abs(row["value_std"] - std) < 4 * row["value_std_se"]
        # The standard deviation of a sample is itself an estimate; k3 with its heavy tail is 1.4 % off at mu = 1.
        assert row["value_bias_se"] == pytest.approx(std / math.sqrt(SAMPLES), rel=0.05)
    assert not [r for r in estimators["exact"][1] if r["table"] == "schulman"]


def test_the_value_of_k2_over_responses_written_out(estimators):
    """Mean and std of sum_t d_t^2 / 2 relative to the KL, from the probabilities of the tree alone."""
    near = next(r for r in estimators["k2"][1] if r["table"] == "sequences" and r["distance"] == 1.0)
    scene = SCENE
    table = {p: (SCENE.log_pi[s], SCENE.graph.log_ref[s]) for s, p in enumerate(SCENE.graph.prefixes)}
    total, square, divergence = 0.0, 0.0, 0.0
    for ids, keep in zip(scene.responses.ids, scene.responses.mask, strict=True):
        tokens = ids[keep].tolist()
        d = [float(table[tuple(tokens[:t])][0][v] - table[tuple(tokens[:t])][1][v]) for t, v in enumerate(tokens)]
        chance = math.exp(sum(float(table[tuple(tokens[:t])][0][v]) for t, v in enumerate(tokens)))
        value = sum(x * x / 2 for x in d)
        total, square, divergence = total + chance * value, square + chance * value**2, divergence + chance * sum(d)
    row = estimators["k2"][0]["reward"]
    assert row["value_bias"] == pytest.approx(total / divergence - 1, abs=EXACT)
    assert row["value_std"] == pytest.approx(math.sqrt(square - total**2) / divergence, abs=EXACT)
    assert near["value_bias"] < -0.1


def test_what_is_exact_is_exact_to_a_millionth(estimators):
    for name, place in [("k1", "reward"), ("exact", "both"), ("k1", "both"), ("k3", "both")]:
        row = estimators[name][0][place]
        assert row["gradient_bias"] < EXACT
        assert row["gradient_cosine"] == pytest.approx(1, abs=EXACT)
        assert row["verdict"] == f"{name} in {place}: the KL of the whole response, exactly"
    variances = {name: estimators[name][0]["both"]["gradient_variance"] for name in ("exact", "k1", "k3")}
    assert min(variances, key=variances.get) == "exact"  # by the Rao-Blackwell theorem
    assert variances["exact"] / estimators["k1"][0]["reward"]["gradient_variance"] == pytest.approx(
        0.2, abs=0.01
    )  # docs/notes.md says "a fifth", from this very table
    for name in ("k1", "k3", "exact", "ratio_k3"):
        assert abs(estimators[name][0]["reward"]["value_bias"]) < EXACT


def test_what_is_not_a_kl_is_flagged_with_its_bias(estimators):
    verdicts = {
        ("exact", "reward"): "only the KL of later tokens",
        ("exact", "loss"): "each token's KL given those before it",
        ("k1", "loss"): "nothing; its gradient is 0 in expectation",
        ("k2", "loss"): "each token's KL given those before it",
        ("ratio_k3", "loss"): "each token's KL given those before it",
        ("k3", "loss"): "each token's KL in the other direction",
        ("k2", "reward"): "no KL",
        ("k3", "reward"): "no KL",
        ("ratio_k3", "reward"): "no KL",
        ("abs", "reward"): "no KL",
        ("k2", "both"): "no KL",
        ("ratio_k3", "both"): "no KL",
    }
    for (name, place), words in verdicts.items():
        row = estimators[name][0][place]
        assert f"{name} in {place}: {words}" in row["verdict"]
        assert row["gradient_bias"] > 0.1
    assert estimators["k1"][0]["loss"]["gradient_bias"] == pytest.approx(1, abs=EXACT)
    assert "points away" in estimators["k3"][0]["reward"]["verdict"]


def test_the_bias_of_exact_in_the_reward_is_the_part_that_it_leaves_out(estimators):
    """It leaves out the gradient of each token's own KL, which autograd on the tree gives: bias = |own| / |whole|."""
    theta = SCENE.log_pi.clone().requires_grad_()
    log_pi = theta.log_softmax(dim=-1)
    visits = exact.occupancy(SCENE.graph, SCENE.log_pi).unsqueeze(1)
    own = (visits * log_pi.exp() * (log_pi - SCENE.graph.log_ref)).sum()
    (now,) = torch.autograd.grad(own, theta, retain_graph=True)
    (whole,) = torch.autograd.grad(exact.divergence(SCENE.graph, log_pi), theta)
    assert estimators["exact"][0]["reward"]["gradient_bias"] == pytest.approx(
        float(now.norm() / whole.norm()), abs=EXACT
    )
    assert estimators["exact"][0]["loss"]["gradient_bias"] == pytest.approx(
        float((whole - now).norm() / whole.norm()), abs=EXACT
    )


def test_whitening_and_aggregation_are_those_of_the_run():
    """Whitening has no effect (its scale is multiplied back); sequence_mean is biased if lengths differ."""
    for variant in ("none", "scale", "population"):
        assert of_kl(KL["k1"], whitening=variant)[0]["reward"]["gradient_bias"] < EXACT
    constant, _ = load_config(sets=["loss.aggregation=constant"])
    assert of_kl(KL["k1"], constant)[0]["reward"]["gradient_bias"] < EXACT
    per_response, _ = load_config(sets=["loss.aggregation=sequence_mean"])
    assert of_kl(KL["k1"], per_response)[0]["reward"]["gradient_bias"] > 0.05


# ---- advantages --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functions():
    return {name: of_advantage(function) for name, function in ADVANTAGES.items()}


def test_gae_with_an_exact_v_is_unbiased_for_every_lambda_and_its_variance_rises(functions):
    rows = functions["gae"]
    exact_v = [rows[lam, "exact"] for lam in (0.0, 0.5, 0.9, 0.95, 1.0)]
    assert max(row["gradient_bias"] for row in exact_v) < EXACT
    variances = [row["gradient_variance"] for row in exact_v]
    assert variances == sorted(variances)
    for critic in ("zero", "noisy"):
        biases = [rows[lam, critic]["gradient_bias"] for lam in (0.0, 0.5, 0.9, 0.95, 1.0)]
        assert biases == sorted(biases, reverse=True)
        assert biases[0] > 0.1
        assert biases[-1] < EXACT


def test_the_others_are_what_the_notes_say(functions):
    for name in ("trajectory_return", "reward_to_go", "reward_to_go_baseline", "reinforce_pp", "rloo"):
        (row,) = functions[name].values()
        assert row["gradient_bias"] < EXACT
        assert "exactly" in row["verdict"]
    assert all(row["gradient_bias"] < EXACT for row in functions["mc"].values())
    assert functions["nstep"][1, "zero"]["gradient_bias"] == pytest.approx(functions["td"]["zero",]["gradient_bias"])
    assert functions["nstep"][4, "zero"]["gradient_bias"] < EXACT
    variance = {name: max(r["gradient_variance"] for r in rows.values()) for name, rows in functions.items()}
    assert variance["reward_to_go_baseline"] < variance["reward_to_go"]
    (dr,), (grpo,) = functions["dr_grpo"].values(), functions["grpo"].values()
    assert dr["gradient_bias"] == pytest.approx(1 / 4, abs=EXACT)  # (n - 1) / n of the gradient, n = 4
    assert dr["gradient_cosine"] == pytest.approx(1, abs=EXACT)
    assert grpo["gradient_cosine"] < 0.999
    assert "biased" in grpo["verdict"]


def test_rloo_by_enumeration_of_pairs():
    """E over two responses of (R1 - R2) grad log pi(y1), written out, is what all groups of two give."""
    found = advantage_gradient(
        built("advantage", ADVANTAGES["rloo"]), CONFIG, "none", SCENE, all_groups(SCENE.probability, 2), 2, SCENE.values
    )
    r, chance = SCENE.responses, SCENE.probability
    log_ratio = (r.taken(SCENE.log_pi) - r.taken(SCENE.graph.log_ref)).sum(dim=1)
    shaped = r.reward - SCENE.beta * log_ratio
    theta = SCENE.log_pi.clone().requires_grad_()
    log_y = r.taken(theta.log_softmax(dim=-1)).sum(dim=1)
    total, squares = torch.zeros_like(theta), 0.0
    (right,) = torch.autograd.grad(exact.objective(SCENE.graph, theta.log_softmax(dim=-1), SCENE.beta), theta)
    grads = [torch.autograd.grad(log_y[i], theta, retain_graph=True)[0] for i in range(len(chance))]
    for i, j in itertools.product(range(len(chance)), repeat=2):
        one = (shaped[i] - shaped[j]) * (grads[i] - grads[j]) / 2  # the mean of both responses
        total += chance[i] * chance[j] * one
        squares += float(chance[i] * chance[j] * one.square().sum())
    assert torch.allclose(total, right, atol=1e-10)
    variance = 2 * (squares - float(total.square().sum())) / float(right.square().sum())
    assert found["gradient_bias"] < EXACT
    assert found["gradient_variance"] == pytest.approx(variance, rel=1e-6)


def test_a_verdict_is_about_the_functions_own_options(functions):
    """One-step advantages are 61 % off with V = 0: lambda 0 and n = 1, and not gae and nstep as they run."""
    verdict = {name: list(rows.values())[-1]["verdict"] for name, rows in functions.items()}
    for name, own in (("gae", (0.95,)), ("nstep", (3,)), ("td", ())):
        zero, noisy = (functions[name][*own, critic]["gradient_bias"] for critic in ("zero", "noisy"))
        assert f"; off by {percent(zero)} with V = 0, off by {percent(noisy)} with a noisy V; variance" in verdict[name]
    assert verdict["gae"].startswith("gae (lam 0.95): the gradient of score - beta KL if V is exact; off by 6.3%")
    assert verdict["nstep"].startswith("nstep (n 3): the gradient of score - beta KL if V is exact; off by 24%")
    assert verdict["td"].startswith("td: the gradient of score - beta KL if V is exact; off by 61%")
    assert "exactly, with V = 0 and a noisy V too; variance" in verdict["mc"]
    for name in ("rloo", "dr_grpo", "grpo"):
        assert ", in groups of 4; variance" in verdict[name]
    assert {key[0] for key, row in functions["gae"].items() if row["own"]} == {0.95}
    assert "groups" not in verdict["reward_to_go"]


def test_an_option_that_the_grid_lacks_is_audited_too():
    rows = list(audit_advantage(built("advantage", gae, lam=0.8), CONFIG, "batch", SCENE))
    (own,) = [row for row in rows if row["own"] and row["values"] == "zero"]
    assert own["options"] == {"lam": 0.8}
    assert rows[-1]["verdict"].startswith(
        f"gae (lam 0.8): the gradient of score - beta KL if V is exact; off by "
        f"{percent(own['gradient_bias'])} with V = 0"
    )
    assert len(rows) == 6 * 3


@pytest.mark.parametrize(("share", "text"), [(0.6146, "61%"), (0.06346, "6.3%"), (0.00042, "0.042%"), (1.106, "111%")])
def test_a_share_has_two_digits(share, text):
    assert percent(share) == text


def wrong_sign(rewards, values, mask, bootstrap_values):
    return -mc(rewards, values, mask, bootstrap_values)


def off_by_one(rewards, values, mask, bootstrap_values):
    """Wrong on purpose: V of the state before, one token late."""
    late = torch.cat([values[:, :1], values[:, :-1]], dim=1)
    return gae(rewards, late, mask, bootstrap_values, lam=0.5)


def unmasked(rewards, values):
    togo = rewards.flip(1).cumsum(1).flip(1)
    return togo - values


def test_wrong_functions_are_caught():
    assert "points away" in list(of_advantage(wrong_sign).values())[-1]["verdict"]
    for function in (off_by_one, unmasked):
        rows = of_advantage(function)
        assert rows["exact",]["gradient_bias"] > 0.05
        assert ": biased" in list(rows.values())[-1]["verdict"] or "points away" in list(rows.values())[-1]["verdict"]


# ---- losses ------------------------------------------------------------------------------------------------


def test_every_loss_begins_with_the_exact_gradient_and_drifts_from_it():
    for name, function in LOSSES.items():
        rows = of_loss(function)
        assert rows[0.0]["gradient_bias"] < EXACT
        assert "at first the gradient of score - beta KL, exactly" in rows[0.1]["verdict"]
        assert rows[0.1]["gradient_bias"] > rows[0.003]["gradient_bias"] > 1e-3, name


def test_the_drift_of_the_ratio_loss_written_out():
    """E_old[sum_t A_t rho_t grad log pi_t] at the moved policy, token by token, against the gradient of J there."""
    ascent = objective_gradient(SCENE, SCENE.log_pi).reshape(SCENE.log_pi.shape)
    table = moved(SCENE.graph, SCENE.log_pi, ascent, 0.03)
    r = SCENE.responses
    theta = table.clone().requires_grad_()
    taken, old = r.taken(theta.log_softmax(dim=-1)), r.taken(SCENE.log_pi)
    cost = torch.where(r.mask, -SCENE.beta * (old - r.taken(SCENE.graph.log_ref)), 0.0)
    togo = cost.flip(1).cumsum(1).flip(1) + r.reward.unsqueeze(1)
    a = torch.where(r.mask, togo - SCENE.values[r.states], 0.0)
    mean = float((SCENE.probability.unsqueeze(1) * a).sum())
    assert mean == pytest.approx(0, abs=1e-9)  # V is exact: the whitening has nothing to take out
    value = (SCENE.probability.unsqueeze(1) * a * (taken - old).exp()).sum()
    (found,) = torch.autograd.grad(value, theta)
    right = objective_gradient(SCENE, table)
    bias = float((found.flatten() - right).norm() / right.norm())
    assert of_loss(ratio)[0.03]["gradient_bias"] == pytest.approx(bias, rel=1e-9)


def test_what_the_clip_holds_back_is_a_share_of_the_tokens_and_no_bias():
    """Held back: A > 0 and rho > 1.2, or A < 0 and rho < 0.8. These given back, the clip is the ratio loss."""
    ascent = objective_gradient(SCENE, SCENE.log_pi).reshape(SCENE.log_pi.shape)
    clip, plain, r = of_loss(LOSSES["ppo_clip"]), of_loss(ratio), SCENE.responses
    log_ratio = torch.where(r.mask, -SCENE.beta * (r.taken(SCENE.log_pi) - r.taken(SCENE.graph.log_ref)), 0.0)
    a = log_ratio.flip(1).cumsum(1).flip(1) + r.reward.unsqueeze(1) - SCENE.values[r.states]
    for distance in (0.01, 0.03, 0.1):
        rho = (r.taken(moved(SCENE.graph, SCENE.log_pi, ascent, distance)) - r.taken(SCENE.log_pi)).exp()
        held = r.mask & (((a > 0) & (rho > 1.2)) | ((a < 0) & (rho < 0.8)))
        share = (SCENE.probability @ held.double().sum(dim=1)) / (SCENE.probability @ r.mask.double().sum(dim=1))
        assert clip[distance]["held_back"] == pytest.approx(float(share), rel=1e-9)
        assert plain[distance]["held_back"] == 0
        for key in ("gradient_bias", "gradient_cosine"):
            assert clip[distance][key] == pytest.approx(plain[distance][key], rel=1e-9)
    assert "holds back 28% of the tokens and, these given back, is off by 83%" in clip[0.1]["verdict"]
    assert "held" not in plain[0.1]["verdict"]
    assert "holds" not in plain[0.1]["verdict"]


def test_a_loss_that_holds_everything_back_from_the_start_is_biased():
    def idle(logprobs, advantages):
        return 0.0 * logprobs * advantages

    rows = of_loss(idle)
    assert rows[0.0]["gradient_bias"] == pytest.approx(1)
    assert rows[0.1]["verdict"].startswith("idle: biased from the first update on, by 100%")


def test_a_loss_of_the_wrong_sign_is_caught():
    def upside_down(logprobs, old_logprobs, advantages):
        return -ratio(logprobs, old_logprobs, advantages)

    rows = of_loss(upside_down)
    assert rows[0.0]["gradient_cosine"] == pytest.approx(-1, abs=1e-6)
    assert "points away" in rows[0.1]["verdict"]


def test_a_loss_that_looks_at_its_neighbour_is_caught():
    def off_by_one(logprobs, old_logprobs, advantages):
        return ratio(logprobs, old_logprobs, torch.roll(advantages, 1, dims=1))

    assert of_loss(off_by_one)[0.0]["gradient_bias"] > 0.1
