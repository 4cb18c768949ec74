"""The composition root: the stages of a run, one after another. Each stage has its own module.

Everything that a user can get wrong is found as early as possible: plugins and files before any training, the base
before the reward model, the reward model before PPO.
"""

from pathlib import Path
from typing import Any

from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import PluginError
from minirlhf.events import Emit
from minirlhf.pipeline.build import build_rewards, set_up
from minirlhf.pipeline.clock import StageClock
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.directory import finished, run_directory, save_models, write_results
from minirlhf.pipeline.drive import describe_ppo, run_ppo
from minirlhf.pipeline.evaluation import evaluate_run
from minirlhf.pipeline.facts import MADE_OF, versions
from minirlhf.pipeline.precision import precision
from minirlhf.pipeline.resume import go_on, newest_checkpoint
from minirlhf.pipeline.rewards import check_lengths, scale_doubts
from minirlhf.pipeline.saved import RunModels
from minirlhf.pipeline.sources import Sources, check_sources
from minirlhf.pipeline.training import Training, prepare_training
from minirlhf.report.of_run import write_report
from minirlhf.rewards.call import RewardModels
from minirlhf.rl.doubts import doubts, template_doubts
from minirlhf.stages.base import Base, prepare_base, prepare_start
from minirlhf.stages.data import Prompts, fit_to_context
from minirlhf.stages.evaluate import Evaluation
from minirlhf.stages.preferences import prepare_reward_model
from minirlhf.store.files import write_text
from minirlhf.text.tokenizer import Tokenizer


def run(config: Config, registry: Registry, out: Path | None, emit: Emit, *, resume: bool = False) -> Path:
    """Base, SFT, reward model, PPO, evaluation; returns the run directory. `emit` gets one dict an event (events.py).

    resume: continue the run in `out` from its newest checkpoint; what it made before PPO is reused.
    """
    clock, device = StageClock(), set_up(config.run)
    sources = check_sources(config, registry, device)
    with run_directory(config.run, out, resume, emit) as (directory, early):
        context = RunContext(config, registry, device, directory, emit)
        started = {"event": "run_started", "run_dir": str(directory), "seed": config.run.seed}
        emit({**started, **versions(config.run, device)})
        for event in early:
            emit(event)
        newest = newest_checkpoint(context) if resume else None
        if newest is not None and finished(context, newest):
            return directory
        if not resume:
            write_config(context)
        told = newest is not None  # whoever wrote a checkpoint has said it all before
        for message in () if told else doubts(config):
            context.warn(message)

        base = prepare_base(config, device, emit)
        for message in () if told else template_doubts(config, base.tokenizer):
            context.warn(message)
        clock.lap("base")
        if config.corpus.demonstrations:
            base = prepare_start(config, base, device, emit)
            clock.lap("sft")
        rewards = sources.rewards
        if sources.waiting:
            rewards = train_rewards(context, sources, base)
            clock.lap("reward_model")
        prompts = fit_prompts_of(context, sources, base.tokenizer)
        both = [*prompts.train, *prompts.heldout]
        check_lengths(rewards, base.tokenizer, both, config.sampler.max_new_tokens)
        for note in () if told else (*prompts.notes, *scale_doubts(rewards)):
            context.warn(note)
        training = prepare_training(context, sources, rewards, base, prompts)
        if resume:
            go_on(context, training, newest)
            write_config(context)
        learn(context, training)
        clock.lap("ppo")
        result = evaluate_policy(context, training, rewards, prompts)
        save_models(directory, training.state, base)
        clock.lap("evaluation")
        made_of = {name: training.facts[name] for name in MADE_OF}
        summary = result.summary | {"made_of": made_of} | {"seconds": clock.seconds()}
        write_results(directory, result, summary)
        finish_run(context, training, result, summary)
    return directory


def write_config(run: RunContext) -> None:
    """Write the resolved config into the run directory, so that it can be run again."""
    write_text(run.directory / "config.toml", dump_toml(run.config, run.directory))


def train_rewards(run: RunContext, sources: Sources, base: Base) -> RewardModels:
    """Train the reward model, or reuse it; then build the rewards that waited for it beside those that are ready."""
    prepare_reward_model(run.config, base, run.device, run.emit)
    ready = {label: built for label, _, built in sources.rewards.models}
    return build_rewards(sources.reward_sections, run.registry, run.device, ready)


def fit_prompts_of(run: RunContext, sources: Sources, tokenizer: Tokenizer) -> Prompts:
    """The prompts that leave room for a whole response."""
    longest = run.config.model.max_positions - run.config.sampler.max_new_tokens
    return fit_to_context(sources.candidates, tokenizer, longest)


def learn(run: RunContext, training: Training) -> None:
    """Run PPO in its precision."""
    with precision(run.config.ppo.precision, training.state):
        run.emit(describe_ppo(run.config, training))
        training.observers.start(run.config, run.directory)
        run_ppo(run, training)
    if not training.state.reference.unchanged():
        raise RuntimeError("the reference is no longer what was frozen: something wrote into its weights")


def evaluate_policy(run: RunContext, training: Training, rewards: RewardModels, prompts: Prompts) -> Evaluation:
    """Compare the trained policy with its reference on the held-out prompts."""
    state, heldout = training.state, prompts.heldout
    run.emit({"event": "stage", "stage": "evaluation", "prompts": min(run.config.evaluation.prompts, len(heldout))})
    models = RunModels(state.policy, state.reference, training.parts.tokenizer, run.device)
    try:
        return evaluate_run(run, models, rewards, heldout, state.controller.beta)
    except PluginError as fault:
        raise PluginError(f"evaluation, after all iterations: {fault}") from fault


def finish_run(run: RunContext, training: Training, result: Evaluation, summary: dict[str, Any]) -> None:
    """Tell the observers, write the report, and emit the run's last event."""
    training.observers.finish(summary)  # before the last event, because an observer may warn
    report = write_report(run.directory)
    samples = result.rows[: run.config.evaluation.samples]
    event = {"event": "run_finished", "run_dir": str(run.directory), "report": str(report)}
    run.emit({**event, **summary, "samples": samples})
