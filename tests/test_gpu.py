"""On a CUDA card (`pytest -m gpu -s`): the numbers of the CPU, the same tokens, resume to the bit, flat memory, speed.

Every test is skipped where there is no card. Products are computed in full float32: TF32 would move the fourth digit.
"""

import json
import os
import shutil
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from time import perf_counter

# cuBLAS reads it when it starts: with it, equal products are equal to the bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from minirlhf.models.decoding import Decoding
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.models.quantise import METHODS, quantise_projections
from minirlhf.models.sampler import Sampler
from minirlhf.rl.guards import MOST_ROUNDING
from minirlhf.studies.bench.ours import Ids, bench_prompts, iterations, policy_of
from minirlhf.studies.bench.workloads import WORKLOADS
from tests.cli.calling import done
from tests.helpers import BOS, EOS, PAD, Letters, random_rollout, seeded, small_policy, small_trunk

CARD, CPU = "cuda", torch.device("cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CLOSE = 1e-4  # between two devices in float32: nats, and gradients relative to their largest


@pytest.fixture(autouse=True)
def _full_float32_and_the_same_order_of_sums():
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.use_deterministic_algorithms(before[1])


def on(device, rollout):
    """A rollout whose tensors are on a device."""
    named = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    moved = {name: value.to(device) for name, value in named.items() if isinstance(value, torch.Tensor)}
    return replace(rollout, **moved)


def numbers_of(device):
    """Log-probs, values, and gradients by name, of a policy with a critic; on the CPU."""
    policy = small_policy(separate_critic=True).to(device)
    rollout = on(device, random_rollout())
    out = policy.forward_pass(rollout)
    weight = torch.linspace(-1, 1, rollout.mask.numel(), device=device).view(rollout.mask.shape) * rollout.mask
    (weight * (out.logprobs + out.values)).sum().backward()
    grads = {name: parameter.grad.cpu() for name, parameter in policy.named_parameters() if parameter.grad is not None}
    return out.logprobs.detach().cpu(), out.values.detach().cpu(), grads


def test_log_probs_values_and_gradients_are_those_of_the_cpu():
    mine, theirs = numbers_of(CPU), numbers_of(CARD)
    assert (mine[0] - theirs[0]).abs().max() < CLOSE
    assert (mine[1] - theirs[1]).abs().max() < CLOSE
    assert mine[2].keys() == theirs[2].keys()
    assert len(mine[2]) > 20
    for name, grad in mine[2].items():
        assert (grad - theirs[2][name]).abs().max() < CLOSE * max(1.0, float(grad.abs().max())), name


def sampled(device, trunk=None, tokens=24):
    policy = Policy(trunk or small_trunk(), Sampler(0.7, banned=(PAD, BOS), stops=(EOS,))).to(device)
    prompts = PromptBatch.build(["abc", "j", "hgfed", "ab"] * 8, [{}] * 32, Letters(), device=device)
    return generate(policy, prompts, Letters(), max_new_tokens=tokens, generator=seeded())


def test_one_seed_gives_the_same_tokens_on_both_devices():
    mine, theirs = sampled(CPU), sampled(CARD)
    assert torch.equal(mine.response_ids, theirs.response_ids.cpu())
    assert mine.completions == theirs.completions


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_captured_step_samples_what_the_plain_one_does(monkeypatch, bfloat16):
    """In float32, and with the blocks in bfloat16. Rows end at different steps, so that it is captured again."""
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    found = []
    for captures in (True, False):
        start = Decoding.__init__

        def begin(self, *args, _start=start, _captures=captures, **options):
            _start(self, *args, **options)
            self.captures = _captures

        with monkeypatch.context() as patch:
            patch.setattr(Decoding, "__init__", begin)
            trunk = small_trunk()
            trunk.in_bfloat16 = bfloat16
            found.append(sampled(CARD, trunk, tokens=40))
        assert bool(replays) == captures
        replays.clear()
    assert torch.equal(found[0].response_ids, found[1].response_ids)
    assert len(set(found[0].completions)) > 8


def test_memory_is_the_same_after_20_and_after_200_iterations():
    work = replace(WORKLOADS["W1"], layers=1, width=32, heads=2, ff=16, vocab=64, response=16, responses=8, minibatch=4)
    turns, used = iterations(work, CARD), []
    for count in (20, 180):
        for _ in islice(turns, count):
            pass
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    print(f"memory after 20 iterations {used[0]:,} bytes, after 200 {used[1]:,}")
    assert used[1] <= used[0] + (1 << 16)


def test_a_run_that_is_resumed_on_the_card_ends_like_one_that_was_not_stopped(tiny, tmp_path):
    kept = ("run.checkpoint_every=1", "run.keep_checkpoints=9", "ppo.iterations=4", f"run.device={CARD}")
    out = tmp_path / "whole"
    done("run", *tiny, *(part for value in kept for part in ("--set", value)), "--out", out)
    copy = Path(shutil.copytree(out, tmp_path / "stopped"))
    for path in sorted((copy / "checkpoints").glob("step_*"))[2:]:
        shutil.rmtree(path)
    (copy / "evaluation.json").unlink()
    shutil.rmtree(copy / "model")
    done("run", "--resume", copy)
    for file in sorted((out / "model").glob("*.safetensors")):
        assert file.read_bytes() == (copy / "model" / file.name).read_bytes()
    one, two = (rows_of(directory) for directory in (out, copy))
    assert one == two
    assert len(one) == 4


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s", "eps"))} for row in rows]


def test_bfloat16_stays_within_its_guard(tiny, tmp_path):
    done("run", *tiny, "--set", "ppo.precision=bfloat16", "--device", CARD, "--out", tmp_path / "run")
    assert max(row["policy/first_log_ratio"] for row in rows_of(tmp_path / "run")) <= MOST_ROUNDING
    policy = Policy(small_trunk(scale=0.1), Sampler(1.0, banned=(PAD, BOS), stops=(EOS,))).to(CARD)
    found = []
    for policy.model.in_bfloat16 in (False, True):
        with torch.no_grad():
            found.append(policy.forward_pass(on(CARD, random_rollout())).logprobs)
    moved = float((found[0] - found[1]).abs().max())
    print(f"bfloat16 moves log-probs by {moved:.4f} nats at most")
    assert 0 < moved <= MOST_ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_packed_weights_compute_what_they_do_on_the_cpu(method):
    pytest.importorskip("bitsandbytes")
    found = []
    for device in (CPU, torch.device(CARD)):
        trunk = quantise_projections(small_trunk(), method, device)
        policy = Policy(trunk, Sampler(1.0, banned=(PAD, BOS), stops=(EOS,))).to(device)
        with torch.no_grad():
            found.append(policy.forward_pass(on(device, random_rollout())).logprobs.cpu())
    assert (found[0] - found[1]).abs().max() < 5e-3  # a weight at the middle of two packed numbers may go either way


@pytest.mark.parametrize("method", [None, *METHODS])
def test_tokens_per_second_of_packed_weights(method):
    if method is not None:
        pytest.importorskip("bitsandbytes")
    work = WORKLOADS["W2"]
    policy = policy_of(work).to(CARD)
    if method is not None:
        policy.model = quantise_projections(policy.model, method, torch.device(CARD))
    prompts, options = bench_prompts(work, 0, CARD), {"max_new_tokens": work.response}
    for _ in range(2):  # the first one is for warming up
        torch.cuda.synchronize()
        started = perf_counter()
        rollout = generate(policy, prompts, Ids(), generator=seeded(), **options)
        torch.cuda.synchronize()
        seconds = perf_counter() - started
    tokens = int(rollout.mask.sum())
    print(f"{method or 'float32'}: {tokens / seconds:,.0f} tokens/s, {torch.cuda.memory_allocated():,} bytes")
    assert tokens == work.responses * work.response


@pytest.mark.parametrize("name", WORKLOADS)
def test_tokens_per_second_of_the_stages(name):
    rows = list(islice(iterations(WORKLOADS[name], CARD), 4))[2:]
    for stage in ("rollout", "score", "learn", "whole"):
        print(f"{name} {stage}: {max(row['tokens'] / row[stage] for row in rows):,.0f} tokens/s")
    assert all(row["tokens"] > 0 for row in rows)


def test_bench_runs_on_the_card():
    events = done("bench", "W1", "--device", CARD, "--turns", "1", "--json").events
    assert [event["what"] for event in events] == ["iteration", "rollout", "score", "learn"]
    assert "floor_seconds" not in events[0]
