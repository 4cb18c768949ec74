"""The PPO stage: drives the loop, and writes metrics, samples, token log and checkpoints between its iterations."""

import math
from collections.abc import Iterator
from typing import Any

from minirlhf.config.schema import Config
from minirlhf.errors import PluginError
from minirlhf.exact.lab import enumerable, optimality
from minirlhf.models.lora import Adapted
from minirlhf.pipeline.build import score_about
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.resume import component_states
from minirlhf.pipeline.training import Training
from minirlhf.ppo import train
from minirlhf.rl.alarms import Alarms
from minirlhf.rl.experience import Experience
from minirlhf.rl.guards import MOST_ROUNDING
from minirlhf.rl.metrics import Metrics
from minirlhf.rl.token_log import token_log
from minirlhf.signals import deferred
from minirlhf.stages.base import problem_of
from minirlhf.store import checkpoint
from minirlhf.store.jsonl import JsonLines, read_rows

# Metrics that have no value in an iteration whose reward failed. NaN says so; 0 would look like a measurement.
NAN_IF_REWARDS_FAIL = ("objective/", "policy/", "loss/", "value/", "val/", "response/", "reward/")


def describe_ppo(config: Config, training: Training) -> dict[str, Any]:
    """The event that opens the PPO stage: sizes, the reference's hash, and notes on choices that are easy to miss."""
    state, parts, notes = training.state, training.parts, [score_about(config)]
    if config.ppo.precision != "float32":
        notes.append(f"{config.ppo.precision}: policy/first_log_ratio is its rounding, {MOST_ROUNDING} nats at most")
    if isinstance(state.policy.model, Adapted):
        adapter = state.policy.model.adapter
        packed = f", its projections in {config.model.quantise}" if config.model.quantise else ""
        notes.append(f"adapters of rank {adapter.rank} on {', '.join(adapter.targets)}; the backbone is frozen{packed}")
    if not parts.learns_values:
        notes.append(f"{config.advantage.function} does not read V: the value head is not trained")
    if parts.whitening == "none":
        notes.append("advantages are not whitened")
    return {
        "event": "stage",
        "stage": "ppo",
        "iterations": config.ppo.iterations,
        "responses": config.ppo.prompts_per_iteration * config.ppo.responses_per_prompt,
        "parameters": sum(p.numel() for p in state.policy.parameters()),
        "reference_sha256": state.reference.hash,
        "kl_target": state.controller.target,
        "notes": notes,
    }


def run_ppo(run: RunContext, training: Training) -> None:
    """Drive the loop to its last iteration; signals are answered between two iterations, after a checkpoint."""
    settings, last = run.config.run, run.config.ppo.iterations
    alarms, every = past_alarms(run, training), settings.checkpoint_every
    with (
        JsonLines(run.directory / "metrics.jsonl") as metrics_file,
        JsonLines(run.directory / "samples.jsonl") as samples,
        JsonLines(run.directory / "tokens.jsonl") as tokens,
        deferred() as stop,
    ):
        for step, experience, metrics in measured_iterations(run, training):
            metrics_file.write({"step": step, **metrics})
            run.emit({"event": "step", "step": step, "iterations": last, **metrics})
            for message in alarms.look(step, metrics):
                run.warn(f"iteration {step}: {message}")
            if step % settings.log_every == 0:
                for row in sample_rows(experience, settings.samples):
                    samples.write({"step": step, **row})
                log_tokens(run, training, experience, tokens)
            training.observers.step(step, experience, metrics)
            if stop.asked or step == last or (every and step % every == 0):
                save_state(run, training, {file.name: file.sync() for file in (metrics_file, samples, tokens)})
            stop.leave()


def measured_iterations(run: RunContext, training: Training) -> Iterator[tuple[int, Experience, Metrics]]:
    """The loop's iterations; metrics gain exact/... where the problem can be enumerated, and NaN if a reward failed."""
    state, problem = training.state, problem_of(run.config)
    loop = train(state, training.parts, run.config)
    while True:
        try:
            step, experience, metrics = next(loop)
        except StopIteration:
            return
        except PluginError as fault:
            raise fault.at_step(state.step + 1) from fault
        if problem is not None and enumerable(problem):  # an estimate would cost more than an iteration
            tokenizer, seed = training.parts.tokenizer, run.config.run.seed
            exact = optimality(state.policy, problem, tokenizer, run.config.kl.coef, seed=seed)
            metrics |= {f"exact/{name}": value for name, value in exact.items() if value is not None}
        if metrics["count/reward_errors"]:
            metrics |= {name: math.nan for name in metrics if name.startswith(NAN_IF_REWARDS_FAIL)}
        yield step, experience, metrics


def past_alarms(run: RunContext, training: Training) -> Alarms:
    """Alarms that have seen the iterations before a resume, so that none is raised twice."""
    config = run.config
    alarms = Alarms(
        learns_values=training.parts.learns_values,
        may_end=config.exact.problem is None,
        last=config.ppo.iterations,
        prompts=config.ppo.prompts_per_iteration,
        group=config.ppo.responses_per_prompt,
    )
    for _ in alarms.replay(read_rows(run.directory / "metrics.jsonl")):
        pass
    return alarms


def save_state(run: RunContext, training: Training, sizes: dict[str, int]) -> None:
    """Write a checkpoint of this iteration, then delete the oldest ones. sizes: bytes of each log file by its name."""
    root, facts = run.directory / "checkpoints", training.facts | {"files": sizes}
    path = checkpoint.save_checkpoint(root, training.state, component_states(training.stateful), facts)
    checkpoint.prune(path, run.config.run.keep_checkpoints)
    run.emit({"event": "checkpoint", "step": training.state.step, "path": str(path)})


def sample_rows(experience: Experience, count: int) -> Iterator[dict[str, Any]]:
    """Rows of samples.jsonl for the first `count` responses; kl in nats per sequence; None for those without a part."""
    rollout = experience.rollout
    for row in range(min(count, len(rollout))):
        part = experience.learnable[row]  # the scores of other rows are 0, which nobody gave
        yield {
            "prompt": rollout.prompts[row],
            "completion": rollout.completions[row],
            "score": experience.scores[row].item() if part else None,
            "kl": experience.kl[row][rollout.mask[row]].sum().item() if part else None,
            "terminated": bool(rollout.terminated[row]),
        }


def log_tokens(run: RunContext, training: Training, experience: Experience, file: JsonLines) -> None:
    """Write the token log of the first `run.token_log` responses; the first of them is an event as well."""
    state, parts, count = training.state, training.parts, run.config.run.token_log
    rows = token_log(experience, state.policy, parts.loss, state.penalty.beta, parts.tokenizer, count)
    for index, row in enumerate(rows):
        file.write({"step": state.step, **row})
        if index == 0:
            first = {name: row[name] for name in ("prompt", "score", "tokens")}
            run.emit({"event": "sample", "step": state.step, **first, "advantages": row["advantage"]})
