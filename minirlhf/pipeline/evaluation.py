"""Evaluation of a run: reference against policy on held-out prompts, by the rewards of its configuration.

Not here: sampling and measuring the two sides (stages/evaluate.py), and the events about it (pipeline.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlhf import PROJECT
from minirlhf.components.component import INPUTS
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.errors import InputError
from minirlhf.exact.lab import optimality
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.build import build_rewards, filled_rewards, set_up
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.directory import final_beta
from minirlhf.pipeline.facts import changed_since
from minirlhf.pipeline.rewards import check_lengths, fit_rewards
from minirlhf.pipeline.saved import RunModels, heldout_prompts, open_run
from minirlhf.rewards.call import RewardModels, ScoreTable, call_rewards
from minirlhf.rewards.shape import Scores, shape_scores
from minirlhf.rl.doubts import changed_objective
from minirlhf.stages.base import problem_of
from minirlhf.stages.data import Prompts, batch, tell_trained_on
from minirlhf.stages.evaluate import Evaluation, Sampling, best_of_n, bootstrap_interval, evaluate, residual_spread
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, true_scores
from minirlhf.store.checkpoint import newest_components
from minirlhf.store.files import read_json
from minirlhf.streams import generator
from minirlhf.tensors import ROUNDING, Moments
from minirlhf.text.corpus import Prompt, common_columns, fit_prompts, read_prompts


def evaluate_run(
    run: RunContext, models: RunModels, rewards: RewardModels, heldout: list[Prompt], beta: float
) -> Evaluation:
    """Compare both sides on the first `evaluation.prompts` held-out prompts; beta = the KL coefficient at the end.

    A problem of the exact lab has few prompts: they are repeated as often as needed, and its optimum is known.
    """
    config, problem, tokenizer, device = run.config, problem_of(run.config), models.tokenizer, models.device
    if problem is not None:
        heldout = [heldout[i % len(heldout)] for i in range(config.evaluation.prompts)]
    sampling = Sampling(tokenizer, config.sampler.max_new_tokens, config.run.seed)
    chosen = heldout[: config.evaluation.prompts]

    def asked(rollout: Rollout) -> ScoreTable:
        return call_rewards(rewards, rollout, config.ppo.iterations, config, tokenizer)

    def scores_of(rollout: Rollout) -> Scores:
        return asked(rollout).tensors(rollout)

    judged: list[tuple[Rollout, ScoreTable]] = []

    def scores_of_side(rollouts: Sequence[Rollout]) -> list[Scores]:
        with rewards.forgetting():  # both sides are judged from the same state
            tables = [asked(rollout) for rollout in rollouts]
        judged.append((rollouts[0], tables[0]))
        return [table.tensors(rollout) for table, rollout in zip(tables, rollouts, strict=True)]

    def shaped_scores_of(rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Scores after the rules for the sum (B,), and True where a response counts (B,)."""
        zeros = torch.zeros(len(rollout), device=device)
        shaped = shape_scores(scores_of(rollout), rollout, zeros, Moments(0.0, 0.0, 0), config.ppo, config.truncation)
        return shaped.scores, shaped.rollout.mask.any(dim=1)

    prompts, resamples = batch(chosen, tokenizer, device), config.evaluation.bootstrap
    result = evaluate(models.policy, models.reference, prompts, scores_of_side, sampling, resamples)
    for warning in unrepeatable(rewards, asked, *judged[0]):
        run.warn(warning)
    result.summary["kl_coef"] = beta
    few = chosen[: config.evaluation.residual_prompts]
    if few and not config.ppo.score_normalize:  # the moments that would normalise them are not kept with the run
        repeated = batch(few, tokenizer, device, config.evaluation.residual_responses)
        for name, model in {"reference": models.reference.policy, "policy": models.policy}.items():
            with rewards.forgetting():
                spread = residual_spread(model, models.reference, repeated, shaped_scores_of, sampling, beta)
            result.summary[name]["residual_std"] = spread
    if few and config.evaluation.best_of and problem is None:  # a problem's best response is known without sampling
        samples = config.evaluation.best_of
        repeated = batch(few, tokenizer, device, samples)
        with rewards.forgetting():
            result.summary["best_of_n"] = best_of_n(models.reference, repeated, samples, scores_of, sampling)
    if config.corpus.text == TRUE_SCORE_CORPUS and problem is None:
        add_true_scores(result, config)
    if problem is not None:
        exact = optimality(models.policy, problem, tokenizer, config.kl.coef, seed=config.run.seed)
        result.summary["optimality"] = exact["optimality"]
        result.summary["exact"] = exact | {"beta": config.kl.coef, "changed": changed_objective(config)}
    return result


def unrepeatable(
    rewards: RewardModels, ask: Callable[[Rollout], ScoreTable], rollout: Rollout, table: ScoreTable
) -> Iterator[str]:
    """Yield a warning for each reward of a plugin that scores the same responses differently when it is asked again.

    Then the second side of an evaluation was judged otherwise than the first. ask: calls the rewards on a rollout;
    table: what they gave when they first saw it.
    """
    if all(built.component.owner == PROJECT for _, _, built in rewards.models):
        return  # ours neither remember nor draw
    with rewards.forgetting():
        second = ask(rollout).by_label
    for label, values in table.by_label.items():
        if not all(same_score(a, b) for a, b in zip(values, second[label], strict=True)):
            yield (
                f"reward {label!r} scores the same responses differently when it is asked again, so reference and "
                "policy are not compared alike: it remembers or draws; a class with state_dict and load_state_dict "
                "begins with the same state for both"
            )


def same_score(a: float | None, b: float | None) -> bool:
    """True if two scores of a response are equal but for rounding, or both None."""
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=ROUNDING))


def add_true_scores(result: Evaluation, config: Config) -> None:
    """Add the hidden true score of both sides' completions, which no reward has seen, with an interval of its gain."""
    scores = {side: torch.tensor(true_scores([row[side] for row in result.rows])) for side in ("reference", "policy")}
    gain = (scores["policy"] - scores["reference"]).double()
    for side, values in scores.items():
        result.summary[side]["true_score_mean"] = values.mean().item()
    interval = bootstrap_interval(gain, config.evaluation.bootstrap, generator(config.run.seed, "bootstrap", 1))
    result.summary["true_score_gain"] = gain.mean().item()
    result.summary["true_score_gain_ci95"] = interval


def tell_seen(config: Config, models: RunModels, prompts: list[Prompt]) -> list[str]:
    """Note on prompts of a file that the run was trained on; none or one."""
    if problem_of(config) is not None:
        return []  # it has no other prompts
    try:
        train = heldout_prompts(config, models.tokenizer).train
    except InputError:  # the run's own files are gone: it can be evaluated, but nobody knows what it was trained on
        return []
    return tell_trained_on(train, prompts, "prompts of the file", "leave them out to measure on new ones")


def reevaluate(
    directory: Path, config: Config, registry: Registry, prompts_file: str | None
) -> tuple[Evaluation, list[str]]:
    """Evaluate a finished run again, by the config's rewards, on its held-out prompts or on those of a file.

    Rewards that remember begin with their state of the run's newest checkpoint. Returns the evaluation, and notes on
    prompts that were left out and on rewards that do not compare the two sides alike.
    """
    made_of = (
        read_json(directory / "evaluation.json").get("made_of") if (directory / "evaluation.json").is_file() else {}
    )
    warnings = [
        f"{path} has changed since the run: this evaluation is of its new content; put the old one back to compare"
        for path in changed_since(made_of)
    ]

    def keep_warning(event: dict[str, Any]) -> None:
        if event["event"] == "warning":
            warnings.append(event["message"])

    run = RunContext(config, registry, set_up(config.run), directory, keep_warning)
    beta = final_beta(directory, config.kl)
    rewards = build_rewards(filled_rewards(config)[0], registry, run.device)
    models = open_run(directory, config, run.device)
    if prompts_file is None or rewards.normalized:
        prompts = own = heldout_prompts(config, models.tokenizer)
    if prompts_file is not None:
        longest = config.model.max_positions - config.sampler.max_new_tokens - 1
        rows = read_prompts(prompts_file, config.corpus.errors, reserved=INPUTS["reward"])
        fitting, note = fit_prompts(rows, models.tokenizer, longest)
        notes = [note] if note else []
        prompts = Prompts([], fitting, [*notes, *tell_seen(config, models, fitting)])
    check_lengths(rewards, models.tokenizer, prompts.heldout, config.sampler.max_new_tokens)
    rewards.check_columns(common_columns(prompts.heldout, *([own.train] if rewards.normalized else [])))
    if rewards.normalized:
        fit_rewards(run, rewards, models.reference, own.train, models.tokenizer)
    if remembering := rewards.states():
        saved = newest_components(directory / "checkpoints")
        rewards.restore({label: saved[f"reward/{label}"] for label in remembering if f"reward/{label}" in saved})
    result = evaluate_run(run, models, rewards, prompts.heldout, beta)
    return result, [*warnings, *prompts.notes]
