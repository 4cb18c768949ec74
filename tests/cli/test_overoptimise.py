"""`minirlhf overoptimise` on the packaged corpus with models far too small: every stage, the tables, the picture."""

import json
import math

import pytest

from tests.cli.calling import done, refused

SMALL = {
    "model.layers": 1,
    "model.hidden_size": 16,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.intermediate_size": 16,
    "tokenizer.vocab_size": 300,
    "pretrain.steps": 5,
    "sft.epochs": 1,
    "reward_model.epochs": 1,
    "reward_model.samples": 8,
    "ppo.iterations": 1,
    "ppo.prompts_per_iteration": 4,
    "ppo.minibatch_size": 4,
    "sampler.max_new_tokens": 8,
    "evaluation.prompts": 8,
    "evaluation.residual_prompts": 0,
    "evaluation.bootstrap": 100,
    "run.threads": 1,
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overoptimise")
    sets = {**SMALL, "run.bases": folder / "bases"}
    plain = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return ["--pairs", "60,90", "--coefs", "0.5,0.1", "--seeds", 1, "--best-of", 4, *plain, "--out", folder / "out"]


@pytest.mark.slow
def test_two_sizes_two_coefficients_and_the_picture(arguments, tmp_path):
    drawn = tmp_path / "curves.svg"
    shown = done("overoptimise", *arguments, "--svg", drawn)
    assert "60 comparisons, held-out accuracy 0." in shown.out
    for start in ("beta 0.5", "beta 0.1", "best of 1", "best of 2", "best of 4", "rank correlation"):
        assert sum(line.startswith(start) for line in shown.out.splitlines()) == 2, start
    assert "what is meant" in drawn.read_text(encoding="utf-8")
    again = done("overoptimise", *arguments, "--json")
    assert again.err.count("kept") == 4
    curves = again.events
    assert [e["event"] for e in curves] == ["curve", "curve", "overoptimise_finished"]
    assert [curve["pairs"] for curve in curves[:2]] == [60, 90]
    for curve in curves[:2]:
        assert [p["kl"] for p in curve["best_of"]] == pytest.approx(
            [0, math.log(2) - 1 / 2, math.log(4) - 3 / 4], abs=1e-6
        )
        proxies = [p["proxy"] for p in curve["best_of"]]
        assert proxies == sorted(proxies)
    out = json.loads((arguments[-1] / "overoptimise.json").read_text())
    assert [curve["pairs"] for curve in out["curves"]] == [60, 90]


def test_refusals(tmp_path):
    refused(2, "overoptimise", "--pairs", "60,60", said=("names one of them twice",))
    refused(2, "overoptimise", "--coefs", "0.1,x", said=("--coefs", "'x'"))
    refused(2, "overoptimise", "--pairs", "1", said=("--pairs", "1 is not in the range"))
    refused(2, "overoptimise", "reviews", said=("true score is known of the corpus `reviews` alone",))
