"""Driving the PPO loop: metrics, samples, token log, alarms and checkpoints between its yields."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.errors import PluginError
from minirlhf.events import Emit
from minirlhf.exact.lab import enumerable, optimality
from minirlhf.pipeline.observers import Observers
from minirlhf.pipeline.resume import component_states
from minirlhf.pipeline.rewards import Scoring
from minirlhf.ppo import Parts, PPOState, train
from minirlhf.rl.alarms import Alarms
from minirlhf.rl.experience import Experience
from minirlhf.rl.token_log import token_log
from minirlhf.signals import deferred
from minirlhf.stages.base import problem_of
from minirlhf.store import checkpoint
from minirlhf.store.jsonl import JsonLines, read_rows

MEASURED = ("objective/", "policy/", "loss/", "value/", "val/", "response/", "reward/")  # of the responses scored


def describe(config: Config, state: PPOState, parts: Parts, precision_error: float) -> dict[str, Any]:
    """The header of the PPO stage: what is chosen, and what a learner asks about the four models."""
    notes = []
    if config.ppo.precision != "float32":
        notes.append(f"{config.ppo.precision}: log-probs within {precision_error:.1g} nats of float32's")
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


def run_ppo(
    config: Config,
    state: PPOState,
    parts: Parts,
    with_state: Mapping[str, Built | Scoring],
    facts: dict[str, Any],
    observers: "Observers",
    directory: Path,
    emit: Emit,
) -> None:
    """Drive the loop; write metrics, samples and checkpoints between its yields, where a signal is answered too."""
    problem, alarms, every = problem_of(config), Alarms(parts.learns_values), config.run.checkpoint_every
    for row in read_rows(directory / "metrics.jsonl"):  # of a run that goes on: what was said is not said again
        with suppress(KeyError, TypeError):  # a row that somebody changed
            if row["count/updates"]:
                alarms.look(row["step"], row)
    with (
        JsonLines(directory / "metrics.jsonl") as metrics_file,
        JsonLines(directory / "samples.jsonl") as samples,
        JsonLines(directory / "tokens.jsonl") as tokens,
        deferred() as stop,
    ):
        loop = train(state, parts, config)
        while True:
            try:
                step, experience, metrics = next(loop)
            except StopIteration:
                break
            except PluginError as fault:
                raise fault.at_step(state.step + 1) from fault
            if problem is not None and enumerable(problem):  # an estimate costs more than an iteration
                found = optimality(state.policy, problem, parts.tokenizer, config.kl.coef, seed=config.run.seed)
                metrics |= {f"exact/{name}": value for name, value in found.items() if value is not None}
            if metrics["count/reward_errors"]:  # nothing was measured: 0 would look as if something had been
                metrics |= {name: math.nan for name in metrics if name.startswith(MEASURED)}
            metrics_file.write({"step": step, **metrics})
            emit({"event": "step", "step": step, "iterations": config.ppo.iterations, **metrics})
            for message in alarms.look(step, metrics) if metrics["count/updates"] else ():
                emit({"event": "warning", "message": f"iteration {step}: {message}"})
            if step % config.run.log_every == 0:
                for row in sample_rows(experience, config.run.samples):
                    samples.write({"step": step, **row})
                log_tokens(state, parts, experience, config.run.token_log, tokens, emit)
            observers.step(step, experience, metrics)
            if stop.asked or step == config.ppo.iterations or (every and step % every == 0):
                sizes = {file.name: file.sync() for file in (metrics_file, samples, tokens)}
                save_state(directory / "checkpoints", config, state, with_state, facts | {"files": sizes}, emit)
            stop.leave()


def save_state(
    root: Path,
    config: Config,
    state: PPOState,
    with_state: Mapping[str, Built | Scoring],
    facts: dict[str, Any],
    emit: Emit,
) -> None:
    """A checkpoint of this iteration; then the oldest ones go."""
    path = checkpoint.save(root, state, component_states(with_state), facts)
    checkpoint.prune(path, config.run.keep_checkpoints)
    emit({"event": "checkpoint", "step": state.step, "path": str(path)})


def sample_rows(experience: Experience, count: int) -> Iterator[dict[str, Any]]:
    """The first responses of a rollout, as samples.jsonl holds them."""
    rollout = experience.rollout
    for row in range(min(count, len(rollout))):
        yield {
            "prompt": rollout.prompts[row],
            "completion": rollout.completions[row],
            "score": experience.scores[row].item(),
            "kl": experience.kl[row][rollout.mask[row]].sum().item(),
            "terminated": bool(rollout.terminated[row]),
        }


def log_tokens(
    state: PPOState, parts: Parts, experience: Experience, count: int, file: JsonLines, emit: Emit
) -> None:  # fmt: skip
    """The token log of this iteration's first responses, and the first of them for whoever watches."""
    rows = token_log(experience, state.policy, parts.loss, state.penalty.beta, parts.tokenizer, count)
    for index, row in enumerate(rows):
        file.write({"step": state.step, **row})
        if index == 0:
            first = {name: row[name] for name in ("prompt", "score", "tokens")}
            emit({"event": "sample", "step": state.step, **first, "advantages": row["advantage"]})
