"""The composition root: a config becomes objects, objects become stages, stages leave files.

Everything that knows about everything stands here and only here: which device, which components, which files. Errors
that a user can cause are found as early as possible, in this order: components, corpus and prompts, base, loop.
"""

from pathlib import Path
from time import perf_counter

import torch

from minirlhf.components.component import Built
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import PluginError
from minirlhf.events import Emit
from minirlhf.pipeline.build import build_components, build_rewards, prepare_ppo, set_up, with_reward_model
from minirlhf.pipeline.directory import finished, run_directory, save_models, versions, write_results
from minirlhf.pipeline.drive import describe, run_ppo
from minirlhf.pipeline.evaluation import evaluate_run
from minirlhf.pipeline.observers import Observers
from minirlhf.pipeline.precision import precision, precision_error
from minirlhf.pipeline.resume import data_facts, go_on, newest_checkpoint, stateful
from minirlhf.pipeline.rewards import Scoring, fit_rewards
from minirlhf.pipeline.saved import read_sources
from minirlhf.ppo import PPOState
from minirlhf.report.of_run import write_report
from minirlhf.rewards.call import RewardModels
from minirlhf.rl.doubts import doubts
from minirlhf.stages.base import Base, prepare_base, prepare_start, read_shown
from minirlhf.stages.data import fit
from minirlhf.stages.preferences import prepare_reward_model, read_pairs
from minirlhf.store.files import write_text
from minirlhf.text.corpus import Prompt


def run(config: Config, registry: Registry, out: Path | None, emit: Emit, *, resume: bool = False) -> Path:
    """Base, SFT, reward model, PPO, evaluation; returns the run directory. `emit` gets one dict an event (README).

    resume: the run in `out` goes on from its newest checkpoint; what it made before PPO is found again.
    """
    clock = Clock()
    device = set_up(config)
    candidates = read_sources(config)
    read_shown(config)  # faults of a file are found before anything is trained
    filled, waiting = with_reward_model(config)
    if waiting:
        read_pairs(config)
    components = build_components(config, registry, device)
    ready = {label: reward for label, reward in config.rewards.items() if label not in waiting}
    rewards = build_rewards(config.model_copy(update={"rewards": ready}), registry, device)
    rewards.check_columns(candidates.columns)
    with run_directory(config, out, resume, emit) as directory:
        emit({"event": "run_started", "run_dir": str(directory), "seed": config.run.seed, **versions(config, device)})
        newest = newest_checkpoint(directory, config, emit) if resume else None
        if newest is not None and finished(directory, newest, config, emit):
            return directory
        if not resume:
            write_text(directory / "config.toml", dump_toml(config))
        for message in doubts(config):
            emit({"event": "warning", "message": message})
        base = prepare_base(config, device, emit)
        clock.lap("base")
        if config.corpus.demonstrations:
            base = prepare_start(config, base, device, emit)
            clock.lap("sft")
        if waiting:
            prepare_reward_model(config, base, device, emit)
            rewards = build_rewards(filled, registry, device, {label: built for label, _, built in rewards.models})
            clock.lap("reward_model")
        prompts = fit(candidates, base.tokenizer, config.model.max_positions - config.sampler.max_new_tokens)
        for note in prompts.notes:
            emit({"event": "warning", "message": note})
        scoring = Scoring(rewards, config, base.tokenizer, emit)
        state, parts = prepare_ppo(config, components, scoring, base, prompts, device)
        fit_rewards(config, rewards, state.reference, prompts.train, base.tokenizer, device, emit)
        remembering: dict[str, Built | Scoring] = {**stateful(components, rewards), "scoring": scoring}
        facts = versions(config, device) | data_facts(filled, base, prompts, components, rewards)
        if resume:
            go_on(newest, directory, state, remembering, facts, emit)
            write_text(directory / "config.toml", dump_toml(config))
        observers = Observers(components.observers, emit)
        with precision(config, state):
            error = precision_error(config, state, parts)
            emit(describe(config, state, parts, error))
            observers.start(config, directory)
            run_ppo(config, state, parts, remembering, facts, observers, directory, emit)
        if not state.reference.unchanged():
            raise RuntimeError("the reference is no longer what was frozen: something wrote into its weights")
        clock.lap("ppo")
        conclude(config, state, base, rewards, prompts.heldout, observers, directory, clock, error, device, emit)
    return directory


def conclude(
    config: Config,
    state: PPOState,
    base: Base,
    rewards: RewardModels,
    heldout: list[Prompt],
    observers: "Observers",
    directory: Path,
    clock: "Clock",
    error: float,
    device: torch.device,
    emit: Emit,
) -> None:
    """Evaluate, save the models, and write the result last."""
    emit({"event": "stage", "stage": "evaluation", "prompts": min(config.evaluation.prompts, len(heldout))})
    side_by_side = (state.policy, state.reference, base.tokenizer)
    try:
        result = evaluate_run(config, *side_by_side, rewards, heldout, state.controller.beta, device)
    except PluginError as fault:
        raise PluginError(f"evaluation, after all iterations: {fault}") from fault
    save_models(directory, state, base)
    clock.lap("evaluation")
    summary = result.summary | ({"precision_error": error} if error else {}) | {"seconds": clock.seconds()}
    write_results(directory, result, summary)
    observers.finish(summary)  # before the last event, because it may warn
    report = write_report(directory)
    shown = result.rows[: config.evaluation.samples]
    emit({"event": "run_finished", "run_dir": str(directory), "report": str(report), **summary, "samples": shown})


class Clock:
    """Seconds of each stage, and of all of them."""

    def __init__(self) -> None:
        self._started = self._last = perf_counter()
        self._laps = dict[str, float]()

    def lap(self, stage: str) -> None:
        """A stage ends now."""
        now = perf_counter()
        self._laps[stage], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        """By stage, and the total."""
        return {**self._laps, "total": perf_counter() - self._started}
