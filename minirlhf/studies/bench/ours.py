"""A workload on minirlhf: the loop of ppo.py itself, timed from yield to yield.

`python -m minirlhf.studies.bench.ours WHAT WORKLOAD_JSON THREADS [DEVICE]` has the protocol of peer.py: it prints
"ready", then runs one iteration for every line of stdin and answers with one line of JSON. WHAT is minirlhf, or rollout
for the rollout alone. Not here: the peers (peer.py), taking turns (turns.py).
"""

import json
import resource
import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf.builtin import advantages, kl, losses
from minirlhf.components.signature import read_component
from minirlhf.config.schema import Config
from minirlhf.heap import keep_memory
from minirlhf.models.families import TransformerConfig
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.optimizer import AdamW
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer
from minirlhf.ppo import Parts, PPOState, train
from minirlhf.rewards.shape import Scores
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.streams import generator
from minirlhf.studies.bench.workloads import Workload
from minirlhf.tensors import Moments

PAD, BOS, EOS = 0, 1, 2
LR = 1e-7  # so small that the policy, and so the work of an iteration, stays the same
COMMON = 8.0  # shared component of all embeddings: it dominates, so that the last norm makes it sqrt(width)


class Ids:
    """Tokenizer stub that decodes to the ids themselves: the work does not depend on texts."""

    pad_id, eos_id, stops = PAD, EOS, (EOS,)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


def trunk_of(work: Workload) -> Transformer:
    """Model with random weights: nearly uniform distributions, except that EOS has the chance of the workload.

    All embeddings share a direction, which survives the last norm. EOS has more of it, which adds a constant to its
    logit.
    """
    sizes = TransformerConfig(
        work.vocab, work.width, work.ff, work.layers, work.heads, work.heads, work.prompt_max + work.response
    )
    trunk = Transformer(sizes)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(0, name, 0)) * 0.02)
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
        trunk.embed_tokens.weight[:, 0] = COMMON
        if work.eos:
            odds = work.eos / (1 - work.eos) * (work.vocab - 3)
            trunk.embed_tokens.weight[EOS, 0] += float(torch.tensor(odds).log()) / work.width**0.5
    return trunk


def bench_prompts(work: Workload, step: int, device: str = "cpu") -> PromptBatch:
    """Random prompts of random lengths, left-padded, ids (B,P): a function of the step alone."""
    random = generator(0, "bench/prompts", step)
    lengths = torch.randint(work.prompt_min, work.prompt_max + 1, (work.responses,), generator=random)
    lengths[0] = work.prompt_max
    ids = torch.randint(3, work.vocab, (work.responses, work.prompt_max), generator=random)
    mask = torch.arange(work.prompt_max).flip(0) < lengths.unsqueeze(1)
    texts = tuple("" for _ in range(work.responses))
    group = torch.arange(work.responses, device=device)
    return PromptBatch(torch.where(mask, ids, PAD).to(device), mask.to(device), group, texts, {})


def even(rollout: Rollout, step: int) -> Scores:
    """Reward that takes no time: share of even ids in each response, (B,)."""
    scores = (((rollout.response_ids % 2 == 0) & rollout.mask).sum(dim=1) / rollout.mask.sum(dim=1)).float()
    return Scores(scores, torch.ones_like(scores, dtype=torch.bool), torch.zeros_like(rollout.mask, dtype=scores.dtype))


def policy_of(work: Workload) -> Policy:
    """Policy on `trunk_of`; its sampler never ends a response if the workload has no EOS."""
    banned = (PAD, BOS) if work.eos else (PAD, BOS, EOS)
    return Policy(trunk_of(work), Sampler(1.0, banned, (EOS,)), separate_critic=work.separate_critic)


def iterations(work: Workload, device: str = "cpu") -> Iterator[dict[str, float]]:
    """Endless PPO iterations; each yields seconds of its stages and of the `whole`, and the number of `tokens`."""
    policy = policy_of(work).to(device)
    optimizer = AdamW(policy.parameters(), lr=LR, eps=1e-5, weight_decay=0.0)
    state = PPOState(
        policy, Reference(policy), optimizer, LambdaLR(optimizer, lambda _: 1.0), KLController(0.05, None, 1),
        Penalty(0.0, None), Moments(0.0, 0.0, 0), Moments(0.0, 0.0, 0),
    )  # fmt: skip
    config = Config.model_validate(
        {
            "ppo": {
                "iterations": 1 << 30, "prompts_per_iteration": work.responses, "epochs": work.epochs,
                "minibatch_size": work.minibatch, "lr": LR, "schedule": "constant",
            },
            "sampler": {"temperature": 1.0, "max_new_tokens": work.response},
        }
    )  # fmt: skip
    built = {
        kind: read_component(kind, function.__name__, "builtin", __file__, function).build()
        for kind, function in (("kl", kl.k1), ("advantage", advantages.gae), ("loss", losses.ppo_clip))
    }
    tokenizer: Any = Ids()
    parts = Parts(
        lambda step: bench_prompts(work, step, device),
        even,
        built["kl"],
        built["advantage"],
        built["loss"],
        "batch",
        tokenizer,
    )
    started = perf_counter()
    for _, experience, metrics in train(state, parts, config):
        now = perf_counter()
        stages = {name: metrics[f"time/{name}"] for name in ("rollout", "score", "learn")}
        yield {**stages, "whole": now - started, "tokens": float(experience.mask.sum())}
        started = perf_counter()


def rollouts(work: Workload, device: str = "cpu") -> Iterator[dict[str, float]]:
    """Endless rollouts without learning; each yields the seconds of the `whole` and the number of `tokens`."""
    policy, tokenizer, step = policy_of(work).to(device), Ids(), 0
    while True:
        prompts = bench_prompts(work, step, device)
        started = perf_counter()
        rollout = generate(
            policy, prompts, tokenizer, max_new_tokens=work.response, generator=generator(0, "bench/rollout", step),  # type: ignore[arg-type]
        )  # fmt: skip
        yield {"whole": perf_counter() - started, "tokens": float(rollout.mask.sum())}
        step += 1


def serve() -> None:
    """Run one turn for each line of stdin, as the arguments say, until it ends."""
    what, work, threads = sys.argv[1], Workload(**json.loads(sys.argv[2])), int(sys.argv[3])
    device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    torch.set_num_threads(threads)
    keep_memory()
    turns = (rollouts if what == "rollout" else iterations)(work, device)
    sys.stdout.write('"ready"\n')
    sys.stdout.flush()
    for _ in iter(sys.stdin.readline, ""):
        found = next(turns)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if device.startswith("cuda"):
            peak = torch.cuda.max_memory_allocated() / 2**20
        sys.stdout.write(json.dumps({**found, "peak_mb": peak}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
