"""`minirlhf overoptimise` on the packaged corpus with models far too small: every stage, the tables, the picture."""

import json
import math

import pytest
import torch

from minirlhf.cli.overoptimise import Curves
from minirlhf.studies.overoptimise import Curve, point
from minirlhf.studies.overoptimise import as_json as plain
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
    assert (
        out["shared"]
        == curves[2]["shared"]
        == {
            "shared": ["base", "SFT model", "reward model", "held-out prompts"],  # there is one seed
            "own": [],
        }
    )
    assert [curve["pairs"] for curve in out["curves"]] == [60, 90]


def test_a_table_has_half_intervals_and_the_end_says_what_is_shared(capsys, tmp_path):
    """Scores 1 and 3 have a standard error of 1, so half an interval is 12.706; scores 2 and 2 have none."""
    one, three, two = (torch.tensor(values, dtype=torch.float64) for values in ([1, 3], [9, 11], [2, 2]))
    curve = Curve(60, 0.75, [point(0.5, two, one, two), point(0.1, three, one, two)], [])
    progress = Curves(as_json=False)
    progress({"event": "compare_finished", "shared": {"shared": ["base"], "own": ["reward model"]}})
    progress({"event": "curve", **plain(curve)})
    progress.finish(2, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[4:7] for line in said if line.startswith("beta")] == [["+2.00", "±", "12.71"]] * 2
    assert said[-6].endswith("at the largest KL +2.00: lost +0.00 ± 0.00")
    assert said[-4] == "±: 95 %, Student's t over the seeds."
    assert said[-3].startswith("Each seed has its own reward model; all seeds share base, so that")
    assert said[-1] == str(tmp_path)


def test_refusals(tmp_path):
    refused(2, "overoptimise", "--pairs", "60,60", said=("names one of them twice",))
    refused(2, "overoptimise", "--coefs", "0.1,x", said=("--coefs", "'x'"))
    refused(2, "overoptimise", "--pairs", "1", said=("--pairs", "1 is not in the range"))
    refused(2, "overoptimise", "reviews", said=("true score is known of the corpus `reviews` alone",))
