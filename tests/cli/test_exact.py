"""`minirlhf run exact`: the real loop on a problem whose optimum is known, and F again from what it saved."""

import json

import pytest

from tests.cli.calling import done, refused


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def short(bases, out, *sets):
    more = [
        part
        for s in (f"run.bases={bases}", "run.threads=1", "evaluation.bootstrap=100", *sets)
        for part in ("--set", s)
    ]
    return ["run", "exact", "--out", out, *more]


def test_it_climbs_past_what_a_policy_without_context_could_reach(bases, tmp_path):
    """12 iterations of large steps: F over 0.93, where the best bigram policy is at 0.88; evaluate finds F again."""
    events = done(*short(bases, tmp_path / "run", "ppo.iterations=12", "ppo.lr=5e-3"), "--json").events
    finished = events[-1]
    assert finished["event"] == "run_finished"
    assert finished["optimality"] > 0.93
    assert finished["exact"]["best"] == pytest.approx(1.770733, abs=1e-6)
    shares = [e["exact/optimality"] for e in events if e["event"] == "step"]
    assert len(shares) == 12
    assert shares[0] < 0.7 < shares[-1] == pytest.approx(finished["optimality"], abs=1e-6)
    assert finished["policy"]["residual_std"] < 0.5 * finished["reference"]["residual_std"]
    assert finished["policy"]["residual_std_on_reference"] < finished["reference"]["residual_std"]
    found, f = finished["objective"], finished["optimality"]
    assert found["best_known"] == {"what": "optimum", "objective": finished["exact"]["best"]}
    assert (found["policy"], found["share_at_most"]) == (finished["exact"]["objective"], f)
    share = (found["policy"] - found["reference"]) / (finished["exact"]["best"] - found["reference"])
    assert share == pytest.approx(f)
    (base,) = [e for e in events if e.get("stage") == "base"]
    assert base["kl"] < 1e-5
    again = json.loads(done("evaluate", tmp_path / "run", "--json").out)
    assert again["optimality"] == pytest.approx(finished["optimality"], abs=1e-9)
    sample = done("sample", tmp_path / "run", "-n", "3").out.split()
    assert all(set(text) <= set("abc") and len(text) == 3 for text in sample)


@pytest.mark.slow
def test_a_problem_with_prompts_and_one_that_ends(bases, tmp_path):
    for name in ("prompts", "variable"):
        sets = (f"exact.problem={name}", "ppo.iterations=6", "ppo.prompts_per_iteration=128")
        finished = done(*short(bases, tmp_path / name, *sets), "--json").events[-1]
        assert 0.3 < finished["optimality"] < 1
    assert finished["policy"]["eos_rate"] > 0


@pytest.mark.slow
def test_a_cut_response_is_worth_what_v_says_of_its_state(bases, tmp_path):
    """Paid both its score and V, a response would never end: F = -3.3. V learns what J pays a cut one, 1 for an a."""
    sets = ("exact.problem=capped", "truncation.rule=bootstrap", "ppo.iterations=100")
    finished = done(*short(bases, tmp_path / "run", *sets), "--json").events[-1]
    assert finished["optimality"] >= 0.99
    assert finished["policy"]["eos_rate"] > 0.7


def test_nothing_can_be_gained_where_every_response_scores_the_same(bases, tmp_path):
    sets = ("exact.problem=constant", "ppo.iterations=1", "ppo.prompts_per_iteration=128", "ppo.score_clip=5")
    result = done(*short(bases, tmp_path / "run", *sets))
    assert "nothing can be gained: J = score - 0.5 KL is " in result.out
    assert "which is not what this run optimised (ppo.score_clip = 5)" in result.out
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["optimality"] is None
    assert (found["exact"]["beta"], found["exact"]["changed"]) == (0.5, ["ppo.score_clip = 5"])


def test_without_a_kl_everything_that_can_be_had_is_the_best_score(bases, tmp_path):
    sets = ("kl.coef=0", "ppo.iterations=2", "ppo.prompts_per_iteration=128")
    finished = done(*short(bases, tmp_path / "run", *sets), "--json").events[-1]
    assert finished["exact"]["best"] == pytest.approx(3.2)
    assert 0 < finished["optimality"] < 1


def test_the_reward_of_a_problem_needs_its_prompts(tiny):
    refused(5, "run", *tiny, "--reward", "problem", said=("exact_problem",))
