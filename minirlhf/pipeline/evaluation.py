"""Evaluation of a run: reference against policy on held-out prompts, by the rewards of its configuration.

Not here: sampling and measuring the two sides (stages/evaluate.py), and the events about it (pipeline.py).
"""

from pathlib import Path

import torch
from torch import Tensor

from minirlhf.components.component import INPUTS
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.exact.lab import optimality
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.build import build_rewards, filled_rewards, set_up
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.directory import final_beta
from minirlhf.pipeline.rewards import fit_rewards
from minirlhf.pipeline.saved import RunModels, heldout_prompts, open_run
from minirlhf.rewards.call import RewardModels, call_rewards
from minirlhf.rewards.shape import Scores, shape_scores
from minirlhf.stages.base import problem_of
from minirlhf.stages.data import Prompts, batch
from minirlhf.stages.evaluate import Evaluation, Sampling, best_of_n, bootstrap_interval, evaluate, residual_spread
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, true_scores
from minirlhf.streams import generator
from minirlhf.tensors import Moments
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

    def scores_of(rollout: Rollout) -> Scores:
        return call_rewards(rewards, rollout, config.ppo.iterations, config, tokenizer).tensors(rollout)

    def shaped_scores_of(rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Scores after the rules for the sum (B,), and True where a response counts (B,)."""
        zeros = torch.zeros(len(rollout), device=device)
        shaped = shape_scores(scores_of(rollout), rollout, zeros, Moments(0.0, 0.0, 0), config.ppo, config.truncation)
        return shaped.scores, shaped.rollout.mask.any(dim=1)

    prompts, resamples = batch(chosen, tokenizer, device), config.evaluation.bootstrap
    result = evaluate(models.policy, models.reference, prompts, scores_of, sampling, resamples)
    result.summary["kl_coef"] = beta
    few = chosen[: config.evaluation.residual_prompts]
    if few and not config.ppo.score_normalize:  # the moments that would normalise them are not kept with the run
        repeated = batch(few, tokenizer, device, config.evaluation.residual_responses)
        for name, model in {"reference": models.reference.policy, "policy": models.policy}.items():
            spread = residual_spread(model, models.reference, repeated, shaped_scores_of, sampling, beta)
            result.summary[name]["residual_std"] = spread
    if few and config.evaluation.best_of and problem is None:  # a problem's best response is known without sampling
        samples = config.evaluation.best_of
        repeated = batch(few, tokenizer, device, samples)
        result.summary["best_of_n"] = best_of_n(models.reference, repeated, samples, scores_of, sampling)
    if config.corpus.text == TRUE_SCORE_CORPUS and problem is None:
        add_true_scores(result, config)
    if problem is not None:
        exact = optimality(models.policy, problem, tokenizer, config.kl.coef, seed=config.run.seed)
        result.summary["optimality"] = exact["optimality"]
        result.summary["exact"] = exact
    return result


def add_true_scores(result: Evaluation, config: Config) -> None:
    """Add the hidden true score of both sides' completions, which no reward has seen, with an interval of its gain."""
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
    """Evaluate a finished run again, by the config's rewards, on its held-out prompts or on those of a file.

    Returns the evaluation, and notes on prompts that were left out.
    """
    run = RunContext(config, registry, set_up(config.run), directory, lambda _: None)
    rewards = build_rewards(filled_rewards(config)[0], registry, run.device)
    models = open_run(directory, config, run.device)
    if prompts_file is None or rewards.normalized:
        prompts = own = heldout_prompts(config, models.tokenizer)
    if prompts_file is not None:
        longest = config.model.max_positions - config.sampler.max_new_tokens - 1
        rows = read_prompts(prompts_file, config.corpus.errors, reserved=INPUTS["reward"])
        fitting, note = fit_prompts(rows, models.tokenizer, longest)
        prompts = Prompts([], fitting, [note] if note else [])
    rewards.check_columns(common_columns(prompts.heldout, *([own.train] if rewards.normalized else [])))
    if rewards.normalized:
        fit_rewards(run, rewards, models.reference, own.train, models.tokenizer)
    beta = final_beta(directory, config.kl)
    return evaluate_run(run, models, rewards, prompts.heldout, beta), prompts.notes
