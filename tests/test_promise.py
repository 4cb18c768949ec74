"""The README's promises and table of the default run, seeds 0 to 4: `pytest -m slow -s tests/test_promise.py`.

Minutes, not seconds: a base is pretrained once and ten runs follow. The table is printed and not asserted: its last
digits depend on the CPU.
"""

import json
import re
from statistics import mean

import pytest
import torch

from minirlhf.builtin.rewards import sentiment
from minirlhf.cli.main import main
from minirlhf.config.layers import load_config
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.pipeline.build import set_up
from minirlhf.pipeline.saved import config_file, heldout_prompts, open_run, side_of
from minirlhf.stages.intervals import t_interval
from tests.helpers import seeded

SEEDS = (0, 1, 2, 3, 4)
HEAD = (
    "| seed | score before | after | gain, 95 % interval | KL, nats | J | J of best of 16 "
    "| policy minus best of 16, 95 % interval | true score gain | without sentiment |"
)
# All held-out prompts of the evaluation, 64 responses of the reference and 16 of the policy to each: so J tells the
# policy from best of 16 to +-0.012. From 16 of the reference, best of 16 is one draw a prompt, and it is +-0.023.
MORE_RESPONSES = (
    "--set", "evaluation.residual_prompts=256",
    "--set", "evaluation.best_of=64",
    "--set", "evaluation.residual_responses=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("promise")


@pytest.fixture(scope="module")
def evaluations(folder):
    return runs(folder, "default")


@pytest.fixture(scope="module")
def evaluations_of_a_smaller_beta(folder):
    return runs(folder, "smaller", "--set", "kl.coef=0.05")


def runs(folder, name, *sets):
    """Evaluations of the default run with these settings by seed; their table is printed."""
    found = {}
    for seed in SEEDS:
        out = folder / f"{name}{seed}"
        with pytest.raises(SystemExit) as ended:
            where = ("--out", str(out), "--set", f"run.bases={folder}/bases")
            main(["run", "--seed", str(seed), *where, *MORE_RESPONSES, *sets])
        assert ended.value.code == 0
        found[seed] = json.loads((out / "evaluation.json").read_text())
    print(f"\n{' '.join(sets)}\n{HEAD}\n|{'---|' * 10}")
    for seed, e in found.items():
        print(row(seed, e))
    return found


def row(seed, e):
    """A row of the README's table: the scores of 256 prompts, J of several responses to each of them."""
    before, after, (low, high) = e["reference"]["score_mean"], e["policy"]["score_mean"], e["score_gain_ci95"]
    best, j = best_of_16(e), e["objective"]["policy"]
    least, most = best["policy_lead_ci95"]
    return (
        f"| {seed} | {before:+.3f} | {after:+.3f} | {e['score_gain']:+.3f} ({low:+.3f} to {high:+.3f}) "
        f"| {e['kl_nats_per_sequence']:.2f} | {j:+.3f} | {best['objective']:+.3f} "
        f"| {best['policy_lead']:+.3f} ({least:+.3f} to {most:+.3f}) "
        f"| {e['true_score_gain']:+.2f} | {e['true_score_gain_unrewarded']:+.2f} |"
    )


def best_of_16(e):
    """Point of best of 16 in an evaluation's objective."""
    (best,) = [point for point in e["objective"]["best_of_n"] if point["n"] == 16]
    return best


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_bigrams_stay_varied_over_five_draws(evaluations, folder, capsys, seed):
    """Beside the one draw of the run's evaluation: between draws the ratio has a standard deviation of 0.02."""
    draws = [evaluations[seed]]
    for other in (101, 102, 103, 104):
        with pytest.raises(SystemExit) as ended:
            alone = ("--set", "evaluation.residual_prompts=0", "--set", "evaluation.best_of=0")
            main(["evaluate", str(folder / f"default{seed}"), "--json", "--set", f"run.seed={other}", *alone])
        assert ended.value.code == 0
        draws.append(json.loads(capsys.readouterr().out))
    kept = [e["policy"]["distinct_2"] / e["reference"]["distinct_2"] for e in draws]
    assert len(set(kept)) == len(kept)
    with capsys.disabled():
        print(f"\nseed {seed}: bigrams as varied as before, times {mean(kept):.3f}; draws {kept}")
    assert mean(kept) >= 0.85


@pytest.mark.slow
def test_texts_of_base_and_policy_agree_with_themselves(evaluations, folder, capsys):
    """A review of the corpus is friendly, unfriendly or neither in all of its sentences; so should the model's be.

    Of the responses of which two sentences have a sentiment: the share that has both, from 8 responses to each of 640
    prompts. Words that are put together by chance alone would have both in about half.
    """
    config, _ = load_config(config_file(folder / "default0"))
    run = open_run(folder / "default0", config, set_up(config.run))
    prompts = heldout_prompts(config, run.tokenizer).heldout
    batch = PromptBatch.build([p.text for p in prompts], [p.columns for p in prompts], run.tokenizer, responses=8)
    for which in ("reference", "policy"):
        side, random, most = side_of(run, config, which), seeded(5), config.sampler.max_new_tokens
        texts = [
            text
            for part in batch.parts(512)
            for text in generate(side, part, run.tokenizer, max_new_tokens=most, generator=random).completions
        ]
        signs = [[x for x in sentiment(re.split(r"(?<=[.!?])\s+", text)) if x] for text in texts]
        told = [row for row in signs if len(row) >= 2]
        both = sum(min(row) < 0 < max(row) for row in told) / len(told)
        with capsys.disabled():
            print(f"\n{which}: {both:.1%} of {len(told)} responses have sentences of both signs")
        assert len(texts) == 8 * 640
        assert len(told) > 500
        assert both < 0.13  # 6 to 10 % were measured; four standard errors, of 900 responses, are 4 %


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_run_is_above_best_of_16(evaluations, seed):
    """In J, what a run maximises; another CPU may miss it by chance: the leads are 0.036 to 0.062, with +-0.014.

    Best of 64, which costs the reference 64 responses an answer, is above, as README says.
    """
    e = evaluations[seed]
    assert best_of_16(e)["policy_lead"] > 0
    assert e["objective"]["policy_gain_ci95"][0] > 0.3
    assert e["objective"]["not_beaten"] == [64]


@pytest.mark.slow
def test_over_the_seeds_it_is_above_best_of_16_by_more_than_chance(evaluations):
    leads = torch.tensor([best_of_16(e)["policy_lead"] for e in evaluations.values()], dtype=torch.float64)
    low, _ = t_interval(leads)
    assert low > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_where_a_nat_costs_less_the_run_beats_best_of_16(evaluations_of_a_smaller_beta, seed):
    """Beta 0.05: by more than chance, and at the cost of variety (docs/default-run.md)."""
    e = evaluations_of_a_smaller_beta[seed]
    assert best_of_16(e)["policy_lead_ci95"][0] > 0
    assert e["kl_nats_per_sequence"] <= 8
    assert e["policy"]["distinct_share"] >= 0.9
