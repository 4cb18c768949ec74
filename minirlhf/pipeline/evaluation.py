"""Evaluating a run: reference against policy on held-out prompts, by the rewards of its configuration."""

from pathlib import Path

import torch
from torch import Tensor

from minirlhf.components.component import INPUTS
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.exact.lab import optimality
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.build import build_rewards, set_up, with_reward_model
from minirlhf.pipeline.directory import final_beta
from minirlhf.pipeline.rewards import fit_rewards
from minirlhf.pipeline.saved import heldout_prompts, open_run
from minirlhf.rewards.call import RewardModels, call_rewards
from minirlhf.rewards.shape import Scores, shape_scores
from minirlhf.stages.base import problem_of
from minirlhf.stages.data import Prompts, batch
from minirlhf.stages.evaluate import Evaluation, best_of_n, bootstrap_interval, evaluate, residual_spread
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, true_scores
from minirlhf.streams import generator
from minirlhf.tensors import Moments
from minirlhf.text.corpus import Prompt, fit_prompts, read_prompts
from minirlhf.text.tokenizer import Tokenizer


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

    def models(rollout: Rollout) -> Scores:
        return call_rewards(rewards, rollout, config.ppo.iterations, config, tokenizer).tensors(rollout)

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
