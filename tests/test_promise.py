"""The README's promises and table of the default run, seeds 0 to 4: `pytest -m slow -s tests/test_promise.py`.

Minutes, not seconds: a base is pretrained once and five runs follow. The table is printed and not asserted: its last
digits depend on the CPU.
"""

import json

import pytest

from minirlhf.cli.main import main

SEEDS = (0, 1, 2, 3, 4)
HEAD = (
    "| seed | score before | after | gain, 95 % interval | KL, nats | objective "
    "| best of 16: score | its objective | true score gain |"
)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promise")
    found = {}
    for seed in SEEDS:
        with pytest.raises(SystemExit) as ended:
            main(["run", "--seed", str(seed), "--out", str(folder / str(seed)), "--set", f"run.bases={folder}/bases"])
        assert ended.value.code == 0
        found[seed] = json.loads((folder / str(seed) / "evaluation.json").read_text())
    print(f"\n{HEAD}\n|{'---|' * 9}")
    for seed, e in found.items():
        print(row(seed, e))
    return found


def row(seed, e):
    """A row of the README's table. Objective: score - beta KL, of the policy and of best-of-n of the reference."""
    before, after, (low, high) = e["reference"]["score_mean"], e["policy"]["score_mean"], e["score_gain_ci95"]
    best, beta, kl = e["best_of_n"][-1], e["kl_coef"], e["kl_nats_per_sequence"]
    return (
        f"| {seed} | {before:+.3f} | {after:+.3f} | {e['score_gain']:+.3f} ({low:+.3f} to {high:+.3f}) | {kl:.2f} "
        f"| {after - beta * kl:+.3f} | {best['score']:+.3f} | {best['score'] - beta * best['kl']:+.3f} "
        f"| {e['true_score_gain']:+.2f} |"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_run_keeps_its_promise(evaluations, seed):
    e = evaluations[seed]
    before, after = e["reference"], e["policy"]
    assert e["prompts"] >= 256
    assert after["score_mean"] >= before["score_p90"]
    assert e["kl_nats_per_sequence"] <= 8
    assert after["distinct_share"] >= 0.9
    assert after["distinct_2"] >= 0.85 * before["distinct_2"]
    assert 0.7 <= after["length_mean"] / before["length_mean"] <= 1.3
