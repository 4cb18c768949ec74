"""Evaluation of a run: reference against policy on held-out prompts, by the rewards of its configuration.

Not here: sampling and measuring the two sides (stages/evaluate.py), and the events about it (pipeline.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlhf import PROJECT
from minirlhf.components.component import INPUTS
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config, RewardConfig
from minirlhf.errors import InputError
from minirlhf.exact.lab import optimality, reference_objective
from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.build import build_rewards, filled_rewards, set_up
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.directory import final_beta
from minirlhf.pipeline.facts import changed_since
from minirlhf.pipeline.rewards import check_lengths, fit_rewards
from minirlhf.pipeline.saved import RunModels, heldout_prompts, open_run, trained_on
from minirlhf.rewards.call import RewardModels, ScoreTable, call_rewards
from minirlhf.rewards.shape import Scores, shape_scores
from minirlhf.rl.doubts import changed_objective, changed_score, score_rules
from minirlhf.stages.base import problem_of
from minirlhf.stages.data import Prompts, batch, tell_trained_on
from minirlhf.stages.evaluate import Evaluation, Sampling, bootstrap_interval, evaluate, score_or_nan
from minirlhf.stages.objective import (
    Measured,
    best_of_n,
    compare_objectives,
    measure,
    objective_of_problem,
    why_unknown,
)
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, rewarded_parts, seen_by, true_score_parts
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
    # No value is read here, and the passes of a critic took an eighth of the time.
    models = replace(models, policy=Policy(models.policy.model, models.policy.sampler))
    if problem is not None:
        heldout = [heldout[i % len(heldout)] for i in range(config.evaluation.prompts)]
    sampling = Sampling(tokenizer, config.sampler.max_new_tokens, config.run.seed)
    chosen = heldout[: config.evaluation.prompts]

    def asked(rollout: Rollout) -> ScoreTable:
        return call_rewards(rewards, rollout, config.ppo.iterations, config, tokenizer)

    judged: list[tuple[Rollout, ScoreTable]] = []

    def scores_of_side(rollouts: Sequence[Rollout]) -> list[Scores]:
        with rewards.forgetting():  # both sides are judged from the same state
            tables = [asked(rollout) for rollout in rollouts]
        judged.append((rollouts[0], tables[0]))
        return [table.tensors(rollout) for table, rollout in zip(tables, rollouts, strict=True)]

    prompts, resamples = batch(chosen, tokenizer, device), config.evaluation.bootstrap
    result = evaluate(models.policy, models.reference, prompts, scores_of_side, sampling, resamples)
    for warning in unrepeatable(rewards, asked, *judged[0]):
        run.warn(warning)
    result.summary["kl_coef"] = beta
    if problem is not None:
        exact: dict[str, Any] = dict(
            optimality(models.policy, problem, tokenizer, config.kl.coef, seed=config.run.seed)
        )
        exact |= {"beta": config.kl.coef, "changed": changed_objective(config)}
        result.summary.update(optimality=exact["optimality"], exact=exact)
    elif config.corpus.text == TRUE_SCORE_CORPUS and not (config.model.path and config.corpus.prompts):
        # A model of the user's own on prompts of their own has nothing to do with reviews.
        add_true_scores(result, config, trained_on(run.directory))
    add_objectives(result.summary, run, models, rewards, chosen[: config.evaluation.residual_prompts])
    return result


def add_objectives(
    summary: dict[str, Any], run: RunContext, models: RunModels, rewards: RewardModels, prompts: list[Prompt]
) -> None:
    """Add the residuals of both sides, best-of-n, and J of all three, from several responses to each of the prompts.

    `objective` is null where J cannot be known; `objective_unknown` then says why. Of a problem whose own score is
    all that the run is paid, J and its optimum are exact, and the prompts serve the residuals alone.
    """
    config, settings, beta = run.config, run.config.evaluation, summary["kl_coef"]
    exact, problem = summary.get("exact"), problem_of(config)
    if exact is None or problem is None or changed_score(config):
        exact = None
    most, reason = 0 if exact else settings.best_of, "evaluation.residual_prompts = 0: nothing was sampled for it"
    found = None
    if prompts:
        sampling = Sampling(models.tokenizer, config.sampler.max_new_tokens, config.run.seed)
        reference, policy = (
            measured_side(run, models, rewards, sampling, batch(prompts, models.tokenizer, models.device, count), side)
            for side, count in (
                (models.reference.policy, max(most, settings.residual_responses)),
                (models.policy, settings.residual_responses),
            )
        )
        if reference.shaped is not None:
            summary["reference"]["residual_std"] = reference.residual_std(0.0)  # its log-ratio to itself is 0
            summary["policy"]["residual_std"] = policy.residual_std(beta)
            summary["policy"]["residual_std_on_reference"] = reference.residual_std(beta)
        if most and problem is None:
            summary["best_of_n"] = best_of_n(reference.scores, most)
        found = None if exact else compare_objectives(reference, policy, beta, most)
        reason = why_unknown(reference, policy, config.truncation.rule)
    if config.ppo.score_normalize:
        reason = "ppo.score_normalize: what normalised the scores is not kept with the run"
    if exact and problem:
        found = objective_of_problem(exact, reference_objective(problem), config.kl.coef, problem.prompts)
    if found and (rules := score_rules(config)):
        found["score_rules"] = rules
    summary |= {"objective": found} | ({} if found else {"objective_unknown": reason})


def measured_side(
    run: RunContext, models: RunModels, rewards: RewardModels, sampling: Sampling, prompts: PromptBatch, side: Policy
) -> Measured:
    """Responses of a side, judged by the rewards and by the run's rules for their sum."""
    config = run.config

    def judge(rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        scores = call_rewards(rewards, rollout, config.ppo.iterations, config, models.tokenizer).tensors(rollout)
        if config.ppo.score_normalize:  # the moments that would normalise them are not kept with the run
            return score_or_nan(scores), None
        zeros = torch.zeros(len(rollout), device=models.device)
        shaped = shape_scores(scores, rollout, zeros, Moments(0.0, 0.0, 0), config.ppo, config.truncation)
        counts = shaped.rollout.mask.any(dim=1)
        if config.truncation.rule == "bootstrap":  # V stands for what a cut response would still have earned
            counts = counts & rollout.terminated
        return score_or_nan(scores), torch.where(counts, shaped.scores, float("nan")).cpu().double()

    with rewards.forgetting():  # both sides are judged from the same state
        return measure(side, models.policy, models.reference, prompts, judge, sampling)


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


def add_true_scores(result: Evaluation, config: Config, paid: Mapping[str, RewardConfig]) -> None:
    """Add the hidden true score of both sides' completions with its parts, and its gain with an interval.

    Then the same gain without the parts that the run was rewarded for, if there are any. paid: rewards that it was
    trained on.
    """
    parts = {
        side: {name: torch.tensor(values) for name, values in true_score_parts([r[side] for r in result.rows]).items()}
        for side in ("reference", "policy")
    }
    rewarded = rewarded_parts(paid)
    for side, values in parts.items():
        result.summary[side]["true_score_mean"] = sum(values.values(), torch.zeros(())).mean().item()
        result.summary[side]["true_score_parts"] = {name: value.mean().item() for name, value in values.items()}
    result.summary.update(true_score_rewarded=rewarded, true_score_seen=seen_by(paid, config.corpus.preferences))
    gains: dict[str, Sequence[str]] = {"true_score_gain": ()}
    for key, left_out in (gains | ({"true_score_gain_unrewarded": rewarded} if rewarded else {})).items():
        before, after = (
            sum((value for name, value in parts[side].items() if name not in left_out), torch.zeros(()))
            for side in ("reference", "policy")
        )
        gain = (after - before).double()
        interval = bootstrap_interval(gain, config.evaluation.bootstrap, generator(config.run.seed, "bootstrap", 1))
        result.summary.update({key: gain.mean().item(), f"{key}_ci95": interval})


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
    models = open_run(directory, config, run.device)  # first: it notes where the base is, on which rewards may stand
    rewards = build_rewards(filled_rewards(config)[0], registry, run.device)
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
