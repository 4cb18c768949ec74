"""Benchmarks: turns with stub contestants, every number by hand; the workloads on our own loop, shrunk."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from minirlhf.errors import UsageError
from minirlhf.studies.bench import turns
from minirlhf.studies.bench.floor import floor_seconds, products, products_by
from minirlhf.studies.bench.ours import bench_prompts, iterations, policy_of, rollouts
from minirlhf.studies.bench.workloads import WORKLOADS
from tests.cli.calling import refused

SMALL = replace(WORKLOADS["W3"], layers=1, width=32, heads=2, ff=16, vocab=64, response=24, responses=8, minibatch=4)
ECHO = """
import sys
print('"ready"', flush=True)
for i, _ in enumerate(sys.stdin):
    print('{"whole": %d}' % i, flush=True)
"""


def test_a_contestant_takes_a_turn_when_it_is_asked_and_ends_with_its_last_words():
    with turns.contestant("echo", [sys.executable, "-c", ECHO]) as one:
        assert [one.turn()["whole"] for _ in range(3)] == [0, 1, 2]
    with (
        pytest.raises(UsageError, match="broken ended: ValueError: no such model"),
        turns.contestant("broken", [sys.executable, "-c", "raise ValueError('no such model')"]),
    ):
        pass


def test_medians_and_ratios_of_neighbouring_turns_by_hand():
    rows = {
        "minirlhf": [{"whole": 1.0, "rollout": 0.5, "peak_mb": 200.0, "tokens": 100.0}] * 3,
        "trl-ppo": [{"whole": w, "rollout": r, "peak_mb": 800.0} for w, r in [(3.0, 1.0), (4.0, 0.5), (8.0, 2.0)]],
        "hf": [{"whole": 1.5, "peak_mb": 400.0}] * 3,
    }
    work = WORKLOADS["W1"]
    found = list(turns.measurements(work, "trl-ppo", rows["trl-ppo"], {"floor_default": 2.0, "floor_onednn": 1.0}))
    assert [(row["what"], row["seconds"], row["fastest"], row["slowest"]) for row in found] == [
        ("iteration", 4.0, 3.0, 8.0),
        ("rollout", 1.0, 0.5, 2.0),
    ]
    assert found[0]["floor_seconds"] == 1.0
    assert found[0]["tokens_per_s"] == 64 * 48 / 4
    assert "floor_seconds" not in found[1]
    against = turns.comparison(work, "minirlhf", "trl-ppo", rows)
    assert (against["ratio_iteration"], against["ratio_rollout"], against["ratio_peak_mb"]) == (4.0, 2.0, 0.25)
    alone = turns.comparison(work, "minirlhf", "hf", rows)
    assert (alone["ratio_iteration"], alone["ratio_rollout"]) == (None, 3.0)


def test_every_turn_is_taken_by_everyone_in_turn(monkeypatch, tmp_path):
    started, events = [], []

    class Stub:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            started.append(f"end {self.name}")

        def turn(self):
            started.append(self.name)
            return {"whole": 1.0, "rollout": 0.5, "score": 0.1, "learn": 0.4, "peak_mb": 1.0}

    monkeypatch.setattr(turns, "contestant", lambda name, command: Stub(name))
    monkeypatch.setattr(turns, "python_of", lambda peer, environments: "python")
    turns.bench(SMALL, ["trl-ppo"], tmp_path, 2, 1, events.append)
    names = ["minirlhf", "minirlhf, separate critic", "trl-ppo"]
    assert started[: 3 * 2] == [name for name in names for _ in range(2)]  # warming up
    assert started[6:12] == names * 2
    assert [e["event"] for e in events].count("comparison") == 2
    keys = {"workload", "what", "seconds", "tokens_per_s", "peak_mb", "floor_seconds"}
    assert all(keys <= set(e) for e in events if e.get("what") == "iteration")
    assert all({"workload", "peer", "ratio_iteration", "ratio_rollout"} <= set(e) for e in events[-2:])


def test_the_products_are_those_of_the_iteration_by_hand():
    """Of a model with 1 layer: 4 square products and 3 of the MLP a pass, and the LM head; decoding is one row a
    response and token, scoring both models, learning three times the forward pass."""
    work = replace(SMALL, prompt_min=4, prompt_max=4, response=2, epochs=1, eos=0.0)
    flops = sum(times * m * k * n for times, (m, k, n) in products(work))
    layer = 4 * 32 * 32 + 3 * 32 * 16
    decode = 2 * 8 * (layer + 32 * 64)
    score = 2 * (8 * 6 * layer + 8 * 2 * 32 * 64)
    learn = 3 * 2 * (4 * 6 * layer + 4 * 2 * 32 * 64)
    assert flops == decode + score + learn
    assert floor_seconds(work, onednn=True) > 0


def test_the_mean_length_of_a_response_by_hand():
    """Half a chance to end at each of at most three tokens: 1/2 + 2/4 + 3/4 = 1.75."""
    assert replace(SMALL, eos=0.5, response=3).mean_response == pytest.approx(1.75)
    assert replace(SMALL, eos=0.0).mean_response == 24
    assert WORKLOADS["W3"].mean_response == pytest.approx(
        0.4 * 128, abs=0.5
    )  # the chance of EOS is written with three digits


def test_the_flag_is_put_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products_by(onednn=True):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_our_own_iterations_are_the_loop_of_ppo():
    found = list(islice(iterations(SMALL), 2))
    assert all(row["whole"] >= row["rollout"] + row["score"] + row["learn"] for row in found)
    assert all(row["tokens"] >= 8 for row in found)
    assert next(rollouts(SMALL))["tokens"] >= 8


@pytest.mark.parametrize("name", ["W1", "W3"])
def test_responses_end_as_often_as_the_workload_says(name):
    """The chance of an EOS in every state of a random text, from the distribution itself; none at all without one."""
    work = replace(WORKLOADS[name], responses=8)
    policy, prompts = policy_of(work), bench_prompts(work, 0)
    with torch.no_grad():
        dist = policy.sampler.log_dist(policy.logits(policy.model(prompts.ids, prompts.mask)))[:, -1]
    chance = dist[:, 2].exp()
    # The logit of EOS is set as if all other logits were 0; those of random weights are only near it.
    assert torch.allclose(chance, torch.full_like(chance, work.eos), rtol=0.25)


def test_refusals(tmp_path):
    refused(2, "bench", "W9", said=("there is no workload 'W9'", "W1, W2, W3"))
    said = ("there is no environment with trl-ppo", "trl==1.12.0", "python3 -m venv")
    refused(2, "bench", "W1", "--against", "trl", "--peers", tmp_path, said=said)
    refused(2, "bench", "W1", "--device", "cuda:99", said=("device 'cuda:99' is not there",))


def test_peers_have_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused(2, "bench", "--against", "hf", "--device", "cuda", said=("the peers run on the CPU only",))


def test_the_device_goes_to_the_process_and_there_is_no_floor_but_the_cpus(monkeypatch, tmp_path):
    commands, events = [], []

    @contextmanager
    def stub(name, command):
        commands.append(command)
        yield SimpleNamespace(name=name, turn=lambda: {"whole": 1.0, "peak_mb": 1.0, "tokens": 9.0})

    monkeypatch.setattr(turns, "contestant", stub)
    turns.bench(SMALL, [], tmp_path, 1, 3, events.append, "cuda:1")
    assert commands[0][-2:] == ["3", "cuda:1"]
    assert "floor_seconds" not in events[0]
    turns.bench(SMALL, [], tmp_path, 1, 3, events.append)
    assert commands[1][-1] == "cpu"
    assert events[1]["floor_seconds"] > 0


def test_the_workloads_go_to_a_process_and_back():
    for work in WORKLOADS.values():
        assert type(work)(**json.loads(json.dumps(work.plain()))) == work
