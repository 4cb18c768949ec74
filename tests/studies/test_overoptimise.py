"""Over-optimisation: every number by hand, best-of-n by enumeration, and the whole of it on stubs in place of runs."""

import json
import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from minirlhf.errors import ConfigError, DivergedError, UsageError
from minirlhf.report.pictures import overoptimisation
from minirlhf.stages.objective import chances_of_best
from minirlhf.studies import overoptimise as o
from tests.helpers import random_rollout


def test_rank_correlation_by_hand():
    """Ranks 0 1 2 3 against 0 1 3 2: 1 - 6 (1 + 1) / (4 x 15) = 0.8. Ties share their mean rank."""
    assert o.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert o.spearman([1, 2, 9], [-5, 0, 1]) == pytest.approx(1)
    assert o.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert o.spearman([1, 2, 3], [0, 0, 1]) == pytest.approx(math.sqrt(3) / 2)  # ranks 0.5 0.5 2 against 0 1 2
    assert o.spearman([1, 2], [5, 5]) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    """Five responses to each of two prompts: the response that the proxy likes best, over every subset of n."""
    draw = torch.Generator().manual_seed(n)
    proxy, truth = (torch.randn(2, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = chances_of_best(5, n)
    assert float(weights.sum()) == pytest.approx(1)
    expected = {"proxy": 0.0, "truth": 0.0}
    for row in range(2):
        subsets = list(combinations(range(5), n))
        for subset in subsets:
            best = max(subset, key=lambda i: proxy[row, i])
            expected["proxy"] += float(proxy[row, best]) / len(subsets) / 2
            expected["truth"] += float(truth[row, best]) / len(subsets) / 2
    assert o.expected_best(proxy, truth, weights) == pytest.approx(tuple(expected.values()))


def test_the_weights_are_finite_for_many_samples():
    for n in (1, 2, 1024, 4096):
        weights = chances_of_best(4096, n)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-9)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def a_curve():
    """Two seeds at three coefficients: the true score peaks in the middle."""
    points = [
        o.point(0.1, tensor(1, 3), tensor(1, 1), tensor(2, 2)),
        o.point(0.05, tensor(8, 10), tensor(2, 2), tensor(4, 3)),
        o.point(0.01, tensor(24, 26), tensor(3, 5), tensor(2, 2)),
    ]
    return o.Curve(100, 0.8, points, [o.point(1, tensor(0, 0), tensor(0, 0), tensor(1, 1))])


def test_a_verdict_by_hand():
    """Both seeds are highest in the middle, by the other seed's word, too: they fall by 4 - 2 and 3 - 2, mean 1.5,
    standard error sqrt(0.5) / sqrt(2) = 0.5, Student's t 12.706."""
    found = a_curve().verdict()
    assert found["spearman"] == pytest.approx(1)
    assert (found["peak"], found["peak_kl"], found["end"], found["end_kl"]) == (3.5, 9, 2, 25)
    assert found["fall"] == 1.5
    assert found["fall_ci95"] == pytest.approx([1.5 - 12.706 / 2, 1.5 + 12.706 / 2], abs=1e-3)
    last = a_curve().points[-1]
    assert (last.distance, last.truth_ci95) == (5, [2, 2])
    assert last.proxy_ci95 == pytest.approx([4 - 12.706, 4 + 12.706], abs=1e-3)
    assert o.point(1, *[tensor(1.0)] * 3).truth_ci95 is None


def test_a_seed_falls_from_the_peak_of_the_others():
    """The first seed is highest at the first point, the second at the second: each falls from the other's peak,
    9 - 1 to 2 - 3. From its own highest point each would have fallen, by luck."""
    points = [
        o.point(0.1, tensor(1, 1), tensor(1, 1), tensor(5, 1)),
        o.point(0.05, tensor(2, 2), tensor(1, 1), tensor(1, 5)),
        o.point(0.01, tensor(3, 3), tensor(1, 1), tensor(2, 2)),
    ]
    assert o.Curve(100, 0.8, points, []).verdict()["fall"] == pytest.approx(((1 - 2) + (1 - 2)) / 2)


@pytest.mark.slow
def test_there_is_no_fall_on_average_where_there_is_nothing_but_noise():
    """A thousand curves of seven equal points, five seeds: the mean of the falls is 0 within four standard errors."""
    draw, falls = torch.Generator().manual_seed(0), []
    for _ in range(1000):
        noise = torch.randn(7, 5, generator=draw, dtype=torch.float64)
        falls.append(o.Curve(1, 0.5, [o.point(k, row, row, row) for k, row in enumerate(noise)], []).verdict()["fall"])
    assert abs(sum(falls) / 1000) < 4 * float(torch.tensor(falls).std()) / math.sqrt(1000)


def test_best_of_n_takes_each_runs_own_responses_and_its_proxys_favourite(monkeypatch):
    """Two prompts, two samples each; the proxy of the first run likes short words, that of the second long ones."""
    texts = [("aa", "b", "cccc", "ddd"), ("e", "ff", "ggg", "h")]
    rollouts = [[replace(random_rollout(4), completions=t)] for t in texts]
    signs = {"first": -1, "second": 1}
    monkeypatch.setattr(o, "proxies", lambda cell, _, r: tensor(*(signs[cell] * len(t) for t in r[0].completions)))
    monkeypatch.setattr(o, "true_scores", lambda completions: [10 * len(t) for t in completions])
    runs = [("first", None, rollouts[0]), ("second", None, rollouts[1])]
    one, two = o.best_of_n_curve(runs, 2)
    assert (one.setting, two.setting) == (1, 2)
    assert one.by_seed == pytest.approx([(15 + 35) / 2, (15 + 20) / 2])
    assert two.by_seed == pytest.approx(
        [(10 + 30) / 2, (20 + 30) / 2]
    )  # shortest of each prompt, longest of each prompt
    assert two.proxy == pytest.approx(((-1 - 3) / 2 + (2 + 3) / 2) / 2)
    assert two.kl == pytest.approx(math.log(2) - 0.5)


def test_the_picture_has_both_panels_and_is_the_same_twice():
    drawn = overoptimisation([o.as_json(a_curve())])
    assert drawn == overoptimisation([o.as_json(a_curve())])
    for text in ("what is optimised", "what is meant", "100 comparisons, PPO, 2 seeds", "best of n, ", "sqrt(KL)"):
        assert text in drawn
    assert drawn.count('id="LineCollection') == 6  # error bars: of PPO and of best-of-n, in both panels and the legend


# ---- cells and gathering -----------------------------------------------------------------------------------


def cells(seeds=2, **given):
    return o.cells_of("preferences", (100, 200), (0.1, 0.02), seeds, options={}, sets=(), **given)


def test_a_cell_is_a_size_a_coefficient_and_a_seed_that_draws_its_own_comparisons():
    found = [(c.config.reward_model.pairs, c.config.kl.coef, c.seed) for c in cells()]
    assert found == [(n, b, s) for n in (100, 200) for b in (0.1, 0.02) for s in (0, 1)]
    assert all(c.config.run.seed == c.config.reward_model.seed == c.seed for c in cells())


def test_what_has_no_true_score_or_no_reward_model_is_refused():
    options = {"options": {}, "sets": ()}
    for rewards in (("sentiment",), ("trained", "sentiment")):
        found = o.cells_of("preferences", (100,), (0.1,), 1, **options, rewards=rewards) if "trained" in rewards else []
        assert len(found) == len(rewards) - 1
    with pytest.raises(UsageError, match="not one reward `trained` without a path"):
        o.cells_of("preferences", (100,), (0.1,), 1, **options, rewards=("sentiment",))
    fixed = ("rewards.trained.path=x",)
    with pytest.raises(UsageError, match="not one reward `trained` without a path"):
        o.cells_of("preferences", (100,), (0.1,), 1, options={}, sets=fixed)
    adaptive = ("kl.controller=adaptive", "kl.target=3.0")
    with pytest.raises(UsageError, match="use fixed"):
        o.cells_of("preferences", (100,), (0.1,), 1, options={}, sets=adaptive)
    with pytest.raises(UsageError, match="there are 6000 comparisons"):
        o.cells_of("preferences", (100, 9000), (0.1,), 1, **options)
    with pytest.raises(ConfigError, match=r"reward_model\.seed cannot be set here"):
        o.cells_of("preferences", (100,), (0.1,), 2, options={}, sets=("reward_model.seed=3",))
    with pytest.raises(UsageError, match="known of the corpus `reviews` alone"):
        o.cells_of("reviews", (100,), (0.1,), 1, **options)
    with pytest.raises(ConfigError, match=r"reward_model\.pairs"):
        o.cells_of("preferences", (1,), (0.1,), 1, **options)


def stub(config, registry, directory, emit):
    """Leaves what a run leaves; the largest KL at the smallest coefficient."""
    if config.run.seed == 9:
        raise DivergedError("loss = nan", "iteration 1", "lower it")
    directory.mkdir(parents=True)
    (directory / ".lock").touch()
    pairs, coef = config.reward_model.pairs, config.kl.coef
    policy = {"score_mean": 1 / coef + config.run.seed, "true_score_mean": pairs / 100 - 1 / coef / 100}
    found = {"policy": policy, "score_gain": 1.0, "true_score_gain": 1.0, "kl_nats_per_sequence": 1 / coef}
    found["kl_coef"] = coef
    (directory / "evaluation.json").write_text(json.dumps({**found, "seconds": {"ppo": 1.0}}))
    return directory


def test_runs_are_gathered_by_size_and_coefficient(tmp_path, monkeypatch):
    monkeypatch.setattr(o, "accuracy_of", lambda cell: cell.config.reward_model.pairs / 1000 + cell.seed / 10)
    monkeypatch.setattr(o, "reference_responses", lambda *_: [])
    monkeypatch.setattr(o, "best_of_n_curve", lambda own, *_: [o.point(len(own), *[tensor(0.0, 0.0)] * 3)])
    events = []
    curves, failure = o.overoptimise(cells(), tmp_path / "out", 4, events.append, stub, jobs=2)
    assert failure is None
    assert events[0]["jobs"] == 2
    assert [curve.pairs for curve in curves] == [100, 200]
    assert [curve.accuracy for curve in curves] == pytest.approx([0.15, 0.25])
    assert [p.setting for p in curves[0].points] == [0.1, 0.02]
    assert [p.kl for p in curves[0].points] == pytest.approx([10, 50])
    assert [p.proxy for p in curves[0].points] == pytest.approx([10.5, 50.5])
    assert curves[1].points[0].by_seed == pytest.approx([1.9, 1.9])
    assert curves[0].best_of[0].setting == 2  # both seeds
    saved = json.loads((tmp_path / "out" / "overoptimise.json").read_text())
    assert saved["curves"] == [o.as_json(curve) for curve in curves]
    assert saved["shared"] == {"shared": ["base", "SFT model", "held-out prompts"], "own": ["reward model"]}
    assert [e["pairs"] for e in events if e["event"] == "curve"] == [100, 200]


def test_a_run_that_fails_is_reported_and_nothing_is_gathered(tmp_path):
    def fails(config, *rest):
        return stub(config.model_copy(update={"run": config.run.model_copy(update={"seed": 9})}), *rest)

    curves, failure = o.overoptimise(cells(1), tmp_path / "out", 4, lambda _: None, fails)
    assert curves == []
    assert isinstance(failure, DivergedError)
