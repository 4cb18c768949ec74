"""The composition root: a config becomes objects, objects become stages, stages leave files.

Everything that knows about everything stands here and only here: which device, which components, which files. Errors
that a user can cause are found as early as possible, in this order: components, corpus and prompts, base, loop.
"""

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import minirlhf
from minirlhf.alarms import Alarms
from minirlhf.base import Base, Emit, prepare_base, prepare_start, problem_of, read_shown, reference_of, sampler_of
from minirlhf.components import INPUTS, Built
from minirlhf.config import Config, doubts, dump_toml
from minirlhf.controllers import KLController, Penalty
from minirlhf.data import Prompts, PromptStream, batch, fit
from minirlhf.errors import PluginError, UsageError, UserError
from minirlhf.evaluate import Evaluation, best_of_n, bootstrap_interval, evaluate, residual_spread
from minirlhf.exact.lab import enumerable, optimality
from minirlhf.experience import Experience, Rollout
from minirlhf.measures import Metrics
from minirlhf.models.policy import Policy, Reference
from minirlhf.optimizer import AdamW
from minirlhf.ppo import Parts, PPOState, train
from minirlhf.precision import precision, precision_error
from minirlhf.preferences import prepare_reward_model, read_pairs, reward_model_place
from minirlhf.registry import BUILTIN_OWNER, Registry
from minirlhf.report.of_run import REPORT, write_report
from minirlhf.resume import check_run, go_on, newest_checkpoint
from minirlhf.rewarding import Scoring, fit_rewards, score
from minirlhf.saved import heldout_prompts, open_run, read_sources
from minirlhf.scoring import RewardModels, Shape
from minirlhf.shaping import Scored, shape_scores
from minirlhf.signals import Terminated, deferred
from minirlhf.store import checkpoint
from minirlhf.store.files import MANIFEST, complete_directory, sha256, write_json, write_text
from minirlhf.store.lock import locked
from minirlhf.store.metrics import JsonLines, read_rows
from minirlhf.store.model import read_json, resolve_device, save_policy
from minirlhf.streams import generator
from minirlhf.tensors import Moments, Whitening
from minirlhf.text.corpus import Prompt, fit_prompts, read_prompts
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.token_log import token_log
from minirlhf.true_score import TRUE_SCORE_CORPUS, true_scores

TRAINED = ("trained", f"{BUILTIN_OWNER}:trained")  # the reward that may wait for a reward model
MEASURED = ("objective/", "policy/", "loss/", "value/", "val/", "response/", "reward/")  # of the responses scored


@dataclass(frozen=True)
class Components:
    """The chosen components but for the rewards, built once a run."""

    kl: Built
    advantage: Built
    loss: Built
    observers: list[Built]


def build_components(config: Config, registry: Registry, device: torch.device) -> Components:
    """Resolve names and options; a class is constructed here (and may load what it needs)."""
    return Components(
        kl=registry.find("kl", config.kl.estimator).build(config.kl.options, device=device),
        advantage=registry.find("advantage", config.advantage.function).build(config.advantage.options, device=device),
        loss=registry.find("loss", config.loss.policy).build(config.loss.options, device=device),
        observers=[registry.find("observer", name).build({}, device=device) for name in config.run.observers],
    )


def build_rewards(
    config: Config, registry: Registry, device: torch.device, built: Mapping[str, Built] | None = None
) -> RewardModels:
    """The rewards, each with its weight, and what is done to its score before that; `built` are there already."""
    built = dict(built or {})
    for label, reward in config.rewards.items():
        if label not in built:
            built[label] = registry.find("reward", reward.use).build(reward.options, device=device)
    return RewardModels(
        [(label, reward.weight, built[label]) for label, reward in config.rewards.items()],
        {label: Shape(reward.normalize, reward.clip) for label, reward in config.rewards.items()},
    )


def whitening(config: Config, advantage: Built) -> Whitening:
    """`auto`: over the batch for functions of V; none for the others, which it would give a baseline and a scale that
    they leave out (or took out) on purpose."""
    chosen = config.advantage.whiten
    if chosen == "auto":
        return "batch" if advantage.names("values") else "none"
    return chosen


def set_up(config: Config) -> torch.device:
    """Threads and device; a sum over many elements depends on the number of threads, so it is the config's."""
    torch.set_num_threads(config.run.threads)
    return resolve_device(config.run.device)


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


def finished(directory: Path, newest: Path, config: Config, emit: Emit) -> bool:
    """Whether nothing is left to do."""
    if not (directory / "evaluation.json").exists():
        return False
    if newest != checkpoint.directory_of(newest.parent, config.ppo.iterations):
        return False
    if not (directory / REPORT).exists():  # killed before it, or there was no room
        write_report(directory)
    emit({"event": "already_finished", "run_dir": str(directory)})
    return True


def data_facts(
    config: Config, base: Base, prompts: Prompts, components: Components, rewards: RewardModels
) -> dict[str, Any]:
    """What a checkpoint is held against beside the versions: the config, hashes of the data, and of plugins' files."""
    texts = [[[prompt.text, prompt.columns] for prompt in part] for part in (prompts.train, prompts.heldout)]
    paths = [Path(str(reward.options.get("path"))) / MANIFEST for reward in config.rewards.values()]
    used = [components.kl, components.advantage, components.loss, *(built for _, _, built in rewards.models)]
    files = {Path(built.component.path) for built in used if built.component.owner != BUILTIN_OWNER}
    return {
        "config": config.model_dump(mode="json"),
        "tokenizer": base.tokenizer.hash,
        "prompts": hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).hexdigest(),
        "reward_models": ", ".join(sha256(path) for path in paths if path.is_file()),
        "code": {str(path): sha256(path) for path in sorted(files) if path.is_file()},
    }


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


def with_reward_model(config: Config) -> tuple[Config, list[str]]:
    """Fill in where the reward model of `corpus.preferences` is, or will be, for rewards `trained` without a path.

    Returns the config, and the labels of the rewards that wait for it.
    """
    waiting = [label for label, r in config.rewards.items() if r.use in TRAINED and not r.options.get("path")]
    if config.corpus.preferences is None or not waiting:
        return config, []
    path = str(reward_model_place(config))
    filled = {
        label: r.model_copy(update={"options": {**r.options, "path": path}}) if label in waiting else r
        for label, r in config.rewards.items()
    }
    return config.model_copy(update={"rewards": filled}), waiting


@contextmanager
def run_directory(config: Config, out: Path | None, resume: bool, emit: Emit) -> Iterator[Path]:
    """Make the directory exclusively, or open that of a run; hold its lock; say how to go on with what does not end.

    A directory that was killed before its config.toml was written holds nothing and is taken again.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = out or Path("runs") / f"{config.run.preset}-{stamp}-s{config.run.seed}"
    directory = Path(os.path.abspath(directory))
    if resume:
        check_run(directory)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir()
        check_unused(directory)  # before a lock file is put there, and once more under the lock
    with locked(directory / ".lock"):
        if not resume:
            check_unused(directory)
        how = f"go on with: minirlhf run --resume {shlex.quote(str(directory))}"
        try:
            yield directory
        except (KeyboardInterrupt, Terminated) as told:
            raise type(told)(how) from told
        except UserError:
            if not resume and checkpoint.all_of(directory / "checkpoints"):
                emit({"event": "warning", "message": f"what was saved is kept; when it is mended {how}"})
            raise


def check_unused(directory: Path) -> None:
    """Nothing is in a new run's directory, but for what one that was killed before it began may have left."""
    if not directory.is_dir() or any(not path.name.startswith(".") for path in directory.iterdir()):
        todo = "choose another --out, or remove it"
        if (directory / "config.toml").is_file():
            todo = "go on with it by --resume, choose another --out, or remove it"
        raise UsageError("the run directory exists and is not empty", str(directory), todo)


def versions(config: Config, device: torch.device) -> dict[str, Any]:
    """What a result depends on beside the config."""
    return {
        "preset": config.run.preset,
        "device": str(device),
        "threads": config.run.threads,
        "minirlhf": minirlhf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def prepare_ppo(
    config: Config, components: Components, scoring: "Scoring", base: Base, prompts: Prompts, device: torch.device
) -> tuple[PPOState, Parts]:
    """Active policy and reference from one base, optimiser, schedule, controller, and the callables of the loop."""
    tokenizer, ppo = base.tokenizer, config.ppo
    policy = Policy(base.trunk, sampler_of(config, tokenizer), separate_critic=config.model.separate_critic).to(device)
    optimizer = AdamW(policy.parameters(), lr=ppo.lr, eps=ppo.adam_eps, weight_decay=0.0)
    total = max(1, ppo.iterations)
    schedule = LambdaLR(optimizer, lambda i: 1.0 if ppo.schedule == "constant" else max(0.0, 1 - i / total))
    state = PPOState(
        policy=policy,
        reference=reference_of(config, policy, tokenizer),
        optimizer=optimizer,
        schedule=schedule,
        controller=KLController(
            config.kl.coef, config.kl.target if config.kl.controller == "adaptive" else None, config.kl.horizon
        ),
        penalty=Penalty(config.loss.penalty, config.loss.penalty_target),
        score_moments=Moments(0.0, 0.0, 0),
    )
    stream = PromptStream(
        prompts.train, tokenizer, config.run.seed, ppo.prompts_per_iteration, ppo.responses_per_prompt, device
    )
    parts = Parts(
        prompts=stream,
        reward_models=scoring,
        kl=components.kl,
        advantage=components.advantage,
        loss=components.loss,
        whitening=whitening(config, components.advantage),
        tokenizer=tokenizer,
    )
    return state, parts


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


def stateful(components: Components, rewards: RewardModels) -> dict[str, Built]:
    """The components that have a state to save, by what it is saved under."""
    named = {f"reward/{label}": built for label, _, built in rewards.models}
    named |= {"kl": components.kl, "advantage": components.advantage, "loss": components.loss}
    return {name: built for name, built in named.items() if built.stateful}


def component_states(named: Mapping[str, Built | Scoring]) -> dict[str, dict[str, Any]]:
    """state_dict of each of these; refused if it would come back from its files as something else."""
    states = {name: built.tell("state_dict") for name, built in named.items()}
    for name, state in states.items():
        try:
            plain = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
            if not all(isinstance(key, str) for key in state):
                raise TypeError("its keys are not all strings")
            if json.loads(json.dumps(plain, allow_nan=False)) != plain:
                raise TypeError("JSON has no tuples, and only strings as keys")
        except (TypeError, ValueError, AttributeError, RecursionError) as fault:
            raise named[name].error(f"has a state that cannot be saved ({fault})", "use tensors or JSON") from None
    return states


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


class Observers:
    """Plugins that watch a run. One that fails is dropped with one warning: watching must not stop what is watched."""

    def __init__(self, observers: list[Built], emit: Emit) -> None:
        self._alive, self._emit = list(observers), emit

    def start(self, config: Config, directory: Path) -> None:
        self._each("start", config, directory)

    def step(self, step: int, experience: Experience, metrics: Metrics) -> None:
        self._each("step", step, experience, dict(metrics))

    def finish(self, summary: dict[str, Any]) -> None:
        self._each("finish", dict(summary))

    def _each(self, method: str, *arguments: Any) -> None:
        for observer in list(self._alive):
            try:
                observer.tell(method, *arguments)
            except PluginError as fault:
                self._alive.remove(observer)
                self._emit({"event": "warning", "message": f"an observer is dropped: {fault}"})


def evaluate_run(
    config: Config,
    policy: Policy,
    reference: Reference,
    tokenizer: Tokenizer,
    rewards: RewardModels,
    heldout: list[Prompt],
    beta: float,
    device: torch.device,
) -> Evaluation:
    """Reference against policy on the first `evaluation.prompts` held-out prompts; how far each is from the optimum.

    The few prompts of a problem of the exact lab are taken as often as it needs.
    """
    problem = problem_of(config)
    if problem is not None:
        heldout = [heldout[i % len(heldout)] for i in range(config.evaluation.prompts)]
    sizes = {"max_new_tokens": config.sampler.max_new_tokens, "seed": config.run.seed}
    chosen = heldout[: config.evaluation.prompts]

    def models(rollout: Rollout) -> Scored:
        return score(rewards, rollout, config.ppo.iterations, config, tokenizer)

    def shaped(rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Scores after the rules, and which count."""
        nothing = torch.zeros(len(rollout), device=device)
        found = shape_scores(models(rollout), rollout, nothing, Moments(0.0, 0.0, 0), config.ppo, config.truncation)
        return found.scores, found.rollout.mask.any(dim=1)

    result = evaluate(
        policy, reference, batch(chosen, tokenizer, device), models, tokenizer,
        resamples=config.evaluation.bootstrap, **sizes,
    )  # fmt: skip
    result.summary["kl_coef"] = beta
    few = chosen[: config.evaluation.residual_prompts]
    if few and not config.ppo.score_normalize:  # the moments of the run's scores are not part of what is evaluated
        several = batch(few, tokenizer, device, config.evaluation.residual_responses)
        for name, model in {"reference": reference.policy, "policy": policy}.items():
            spread = residual_spread(model, reference, several, shaped, tokenizer, beta=beta, **sizes)
            result.summary[name]["residual_std"] = spread
    if few and config.evaluation.best_of and problem is None:  # of a problem the best is known
        several = batch(few, tokenizer, device, config.evaluation.best_of)
        samples = config.evaluation.best_of
        result.summary["best_of_n"] = best_of_n(reference, several, samples, models, tokenizer, **sizes)
    if config.corpus.text == TRUE_SCORE_CORPUS and problem is None:
        add_true_scores(result, config)
    if problem is not None:
        found = optimality(policy, problem, tokenizer, config.kl.coef, seed=config.run.seed)
        result.summary["optimality"] = found["optimality"]
        result.summary["exact"] = found
    return result


def add_true_scores(result: Evaluation, config: Config) -> None:
    """The hidden true score of both sides' completions, which no reward has seen, with the interval of its gain."""
    scores = {side: torch.tensor(true_scores([row[side] for row in result.rows])) for side in ("reference", "policy")}
    gain = (scores["policy"] - scores["reference"]).double()
    for side, values in scores.items():
        result.summary[side]["true_score_mean"] = values.mean().item()
    interval = bootstrap_interval(gain, config.evaluation.bootstrap, generator(config.run.seed, "bootstrap", 1))
    result.summary["true_score_gain"] = gain.mean().item()
    result.summary["true_score_gain_ci95"] = list(interval)


def reevaluate(
    directory: Path, config: Config, registry: Registry, prompts_file: str | None
) -> tuple[Evaluation, list[str]]:
    """Evaluate a finished run again: by the config's rewards, on its held-out prompts or those of a file.

    Returns the evaluation, and what was done to the prompts.
    """
    device = set_up(config)
    rewards = build_rewards(with_reward_model(config)[0], registry, device)
    saved = open_run(directory, config, device)
    if prompts_file is None or rewards.normalized:
        prompts = own = heldout_prompts(config, saved.tokenizer)
    if prompts_file is not None:
        longest = config.model.max_positions - config.sampler.max_new_tokens - 1
        read = read_prompts(prompts_file, config.corpus.errors, reserved=INPUTS["reward"])
        kept, note = fit_prompts(read, saved.tokenizer, longest)
        prompts = Prompts([], kept, [note] if note else [])
    rewards.check_columns({name for p in [*prompts.train, *prompts.heldout] for name in p.columns})
    if rewards.normalized:
        fit_rewards(config, rewards, saved.reference, own.train, saved.tokenizer, device, lambda _: None)
    three = (saved.policy, saved.reference, saved.tokenizer)
    beta = final_beta(directory, config)
    return evaluate_run(config, *three, rewards, prompts.heldout, beta, device), prompts.notes


def final_beta(directory: Path, config: Config) -> float:
    """The KL coefficient that a run ended with; the config's, if that is not known or was fixed."""
    if config.kl.controller == "fixed":
        return config.kl.coef
    try:
        return float(read_json(directory / "evaluation.json")["kl_coef"])
    except (UserError, KeyError, TypeError, ValueError):
        return config.kl.coef


def save_models(directory: Path, state: PPOState, base: Base) -> None:
    """model/ = the trained policy; reference/ = the base it started from, hard links where the file system allows."""
    with complete_directory(directory / "model") as temporary:
        save_policy(temporary, state.policy, base.tokenizer)
    with complete_directory(directory / "reference") as temporary:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            try:
                os.link(base.directory / name, temporary / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(base.directory / name, temporary / name)
        write_json(temporary / "reference.json", {"weights_sha256": state.reference.hash})


def write_results(directory: Path, result: Evaluation, summary: dict[str, Any]) -> None:
    """evaluation.json last: where it stands, the run is complete."""
    with JsonLines(directory / "samples.jsonl") as samples:
        for row in result.rows:
            samples.write({"stage": "evaluation", **row})
    write_json(directory / "evaluation.json", summary)
