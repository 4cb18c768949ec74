"""Plan of a run's memory before anything is loaded: `minirlhf run ... --dry-run`.

Sizes come from the configuration, from the config.json of a model of one's own, and from the prompts, if there is a
tokenizer already. Not here: the counts themselves (models/memory.py).
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from minirlhf.components.registry import Registry
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.errors import InputError
from minirlhf.events import Emit
from minirlhf.models.families import TransformerConfig
from minirlhf.models.memory import MemoryPlan, MemorySizes, plan_memory, process_bytes
from minirlhf.pipeline.build import build_components, set_up
from minirlhf.pipeline.saved import heldout_prompts
from minirlhf.stages.base import base_directory, own_sizes
from minirlhf.stages.divergence import PASS
from minirlhf.stages.evaluate import ROWS, streams_at_a_time
from minirlhf.stages.model_source import check_model, find_model, look_at_start, obtain_model
from minirlhf.store.adapters import load_adapter
from minirlhf.store.models import read_tokenizer
from minirlhf.text.foreign import ForeignTokenizer
from minirlhf.text.tokenizer import Tokenizer

BITS = {"int8": 8.5, "nf4": 4.5}  # of a packed weight, its share of a scale included


@dataclass(frozen=True)
class RunPlan:
    """Memory of a run: PPO's plan, the peak of the evaluation, and the memory of the device (None: not known)."""

    model: TransformerConfig
    sizes: MemorySizes
    ppo: MemoryPlan
    evaluation: int
    device: str
    available: int | None

    @property
    def stages(self) -> dict[str, int]:
        """Largest number of bytes of each stage."""
        ppo = self.ppo
        return {"rollout": ppo.rollout, "score": ppo.score, "learn": ppo.learn, "evaluation": self.evaluation}

    def as_event(self) -> dict[str, Any]:
        """Numbers of the plan as JSON, bytes throughout."""
        peak = max(self.stages.values())
        return {
            "device": self.device, "available": self.available, "peak": peak,
            "fits": None if self.available is None else peak <= self.available, "parts": asdict(self.ppo),
            "stages": self.stages, "parameters": self.sizes.backbone_parameters,
            "trained": self.sizes.trained_parameters,
        }  # fmt: skip


def plan_run(config: Config, registry: Registry, emit: Emit) -> RunPlan:
    """Calculate the memory of a run. Raises what the run itself would raise for its model, prompts and components."""
    device = set_up(config.run)
    components = build_components(config, registry, device)
    if config.model.path is None:
        model = own_sizes(config.model, config.tokenizer.vocab_size)
    else:
        model = check_model(find_model(config, emit), config.model.max_positions)
    look_at_start(config, model)
    sizes = memory_sizes(config, model, longest_prompt(config), learns_values=components.advantage.names("values"))
    sizes = replace(sizes, full_kl=components.kl.names("log_dist"))
    baseline = process_bytes() if device.type == "cpu" else 0
    ppo = plan_memory(sizes, baseline)
    evaluated = config.evaluation
    most = max(evaluated.prompts, evaluated.residual_prompts * max(evaluated.best_of, evaluated.residual_responses))
    together = ROWS * streams_at_a_time(model, sizes.row_tokens, sizes.weight_bytes)
    rollout, score = (plan_memory(replace(sizes, rows=min(rows, most)), baseline) for rows in (together, PASS))
    return RunPlan(model, sizes, ppo, max(rollout.rollout, score.score), str(device), memory_of(device))


def memory_sizes(config: Config, model: TransformerConfig, prompt: int, *, learns_values: bool) -> MemorySizes:
    """Sizes of PPO with this configuration on a model of these sizes; prompt: tokens of the longest one."""
    ppo, lora, rank, targets = config.ppo, config.lora, config.lora.rank, config.lora.targets
    if lora.path is not None:
        adapter = load_adapter(Path(lora.path), model)[0]
        rank, targets = adapter.rank, adapter.targets
    return MemorySizes(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        layers=model.num_hidden_layers,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_dim=model.head_size,
        rows=ppo.prompts_per_iteration * ppo.responses_per_prompt,
        prompt_tokens=prompt,
        new_tokens=config.sampler.max_new_tokens,
        micro_rows=ppo.micro_batch_size or ppo.minibatch_size,
        tied=model.tied,
        weight_bytes=2 if config.model.dtype == "bfloat16" else 4,
        lora_rank=rank,
        lora_targets=targets,
        separate_critic=config.model.separate_critic and learns_values,
        autocast=ppo.precision == "bfloat16" and not lora.on,
        recompute=ppo.recompute,
        packed_bits=BITS.get(config.model.quantise or ""),
    )


def longest_prompt(config: Config) -> int:
    """Tokens of the longest prompt of a run, or as many as fit where there is no tokenizer to count them yet."""
    fit = config.model.max_positions - config.sampler.max_new_tokens
    directory = base_directory(config)
    if config.exact.problem or not directory.is_dir():
        return fit
    tokenizer = read_tokenizer(directory, chat=config.corpus.chat)
    prompts = heldout_prompts(config, tokenizer)
    both = [*prompts.train, *prompts.heldout]
    ids = tokenizer.prompt_ids([prompt.text for prompt in both], [prompt.spoken for prompt in both])
    return max(map(len, ids), default=fit)


def memory_of(device: torch.device) -> int | None:
    """Bytes of a device's memory: free ones of a CUDA device, for the CPU all that this process may have.

    None: not known.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min([machine, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])
    return None


def group_limits(groups: Path, root: Path) -> Iterator[int]:
    """Yield the limits in bytes of a process's control groups and of those above them: a container has less memory.

    groups: its file in /proc, with lines ID:CONTROLLERS:PATH; root: where the file systems of groups are mounted. In a
    container the paths may be those outside, while the container's own group is mounted as the root.
    """
    try:
        lines = groups.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    except OSError:  # no Linux
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:  # version 2: one tree
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for place in dict.fromkeys((inside, *inside.parents, PurePosixPath())):
            with suppress(OSError, ValueError):  # no such group here, or no limit: "max"
                yield int((top / place / name).read_text(encoding="ascii"))


def describe_model(name: str, emit: Emit) -> dict[str, Any]:
    """Facts of a model for `minirlhf model show`; InputError that says why it cannot be used.

    name: as of `model.path`; what is not on disk yet is converted or downloaded. memory: bytes by stage of PPO on 16
    responses of 64 + 64 tokens in minibatches of 4, for some ways to train.
    """
    config, _ = load_config(None, options={"model.path": name}, kinds=())
    directory = obtain_model(config, emit)
    model, tokenizer = check_model(directory, 8), read_tokenizer(directory)
    work = MemorySizes(
        model.vocab_size, model.hidden_size, model.intermediate_size, model.num_hidden_layers,
        model.num_attention_heads, model.num_key_value_heads, model.head_size, rows=16, prompt_tokens=64, new_tokens=64,
        micro_rows=4, tied=model.tied,
    )  # fmt: skip
    packed = {
        f"adapters, {method}, recomputed": replace(
            work, lora_rank=8, weight_bytes=2, recompute=True, packed_bits=BITS[method]
        )
        for method in ("nf4", "int8")
    }
    ways = packed | {
        "adapters, bfloat16, recomputed": replace(work, lora_rank=8, weight_bytes=2, recompute=True),
        "adapters, bfloat16": replace(work, lora_rank=8, weight_bytes=2),
        "adapters, float32": replace(work, lora_rank=8),
        "all weights, float32": work,
    }
    plans = {way: plan_memory(sizes) for way, sizes in ways.items()}
    named = tokenizer.special
    return {
        "model": str(directory),
        "supported": f"yes: {model.family}",
        "parameters": work.backbone_parameters,
        "layers": model.num_hidden_layers,
        "width": model.hidden_size,
        "vocabulary": f"{model.vocab_size} in the model, {tokenizer.vocab_size} in the tokenizer",
        "positions": model.max_position_embeddings,
        "texts begin": ", ".join(f"{named.get(i, i)} ({i})" for i in tokenizer.start) or "without a token of their own",
        "texts end": ", ".join(f"{named.get(i, i)} ({i})" for i in tokenizer.stops),
        "filler": f"{named.get(tokenizer.pad_id, tokenizer.pad_id)} ({tokenizer.pad_id})",
        "never sampled": f"{len(tokenizer.banned(model.vocab_size))} ids",
        "template": template_of(tokenizer),
        "memory_unit": "bytes",
        "memory": {
            way: {"rollout": plan.rollout, "score": plan.score, "learn": plan.learn} for way, plan in plans.items()
        },
    }


def template_of(tokenizer: Tokenizer) -> str:
    """Chat template of a tokenizer: "chat" if it has one, "none", or why it cannot be used."""
    if not isinstance(tokenizer, ForeignTokenizer) or tokenizer.template is None:
        return "none"
    try:
        tokenizer.in_use()
    except InputError as fault:
        return f"cannot be used: {fault}"
    return "chat"
