"""The measure that decides which variant of a comparison is better, and the reason for it.

J = score - beta KL is what a run optimises, so it decides wherever all variants have the same J: the same rewards, the
same beta, the same reference and prompts. On a problem of the exact lab it is F, the share of the possible gain in J.

Not here: the differences themselves (summary.py) and the verdict on them (report/of_compare.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from minirlhf.config.layers import leaf_values
from minirlhf.config.schema import Config
from minirlhf.pipeline.build import TRAINED_REWARD_NAMES
from minirlhf.studies.grid import Cell, Variant
from minirlhf.studies.summary import Outcome

J = "J = score - beta KL"
NAMES = {
    "objective": J,
    "optimality": "F, the share of the gain in J that is possible",
    "true_score_mean": "the true score",
    "score_gain": "the score gain, which does not count the KL",
}
REFERENCE = ("corpus", "tokenizer", "model", "pretrain", "sampler")  # sections that decide it, or its prompts
MOST_NAMED = 3  # keys in a sentence


def judged(cells: Sequence[Cell], outcomes: Mapping[Variant, Outcome]) -> dict[str, Any]:
    """Return {"measure", "why"}: the key of the measure that decides, or None, and a sentence that says so.

    F if all variants are on problems of the exact lab; else J if it is the same of all; else the true score; else the
    score gain if the rewards are the same. A measure decides only if every variant that has a finished run has it.
    """
    configs = list({cell.variant: cell.config for cell in cells}.values())  # of one seed: keys may follow the seed
    changed = differing([objective_settings(config) for config in configs])
    adaptive = any(config.kl.controller == "adaptive" for config in configs)
    on_lab = all(config.exact.problem for config in configs)
    comparable = not changed and (on_lab or not adaptive)
    order = ["optimality"] if on_lab else []
    order += ["objective"] if comparable else []
    order += ["true_score_mean"]
    order += ["score_gain"] if not any(decides_score(key, configs[0]) for key in changed) else []
    finished = [outcome for outcome in outcomes.values() if outcome.measures]
    measure = next((name for name in order if finished and all(has(o, name) for o in finished)), None)

    if comparable:
        reason = f"{J} is not known of all of them"
    elif changed:
        more = f" and {len(changed) - MOST_NAMED} other keys" if len(changed) > MOST_NAMED else ""
        differs = "differs" if len(changed) == 1 else "differ"
        reason = f"{J} is not the same for all of them, because {', '.join(changed[:MOST_NAMED])}{more} {differs}"
    else:
        reason = (
            f"{J} is not the same for all runs, because each ends with a beta of its own (kl.controller = adaptive)"
        )
    if measure is None:
        return {"measure": None, "why": f"Nothing says which variant is better: {reason}; no other score is, either."}
    why = f"Variants are compared in {NAMES[measure]}, by the differences of the same seed"
    if measure == "optimality":
        return {"measure": measure, "why": f"{why}." if comparable else f"{why}; each has an optimum of its own."}
    if measure == "objective":
        return {"measure": measure, "why": f"{why}." if on_lab else f"{why}; each J is {sample_of_j(configs)}."}
    return {"measure": measure, "why": f"{why}: {reason}."}


def sample_of_j(configs: Sequence[Config]) -> str:
    """Text of how many responses and prompts a J that is no exact one is measured on."""
    responses = sorted({config.evaluation.residual_responses for config in configs})
    prompts = min(configs[0].evaluation.residual_prompts, configs[0].evaluation.prompts)  # the same of all
    return f"from {' or '.join(map(str, responses))} responses to each of up to {prompts} held-out prompts"


def objective_settings(config: Config) -> dict[str, Any]:
    """Dotted key -> value of all settings on which J of a policy depends: rewards and their rules, beta, reference,
    prompts.

    On a problem of the exact lab J is that of its table, whatever the transformer.
    """
    found = {".".join(path): value for path, value in leaf_values(config.model_dump())}
    if config.exact.problem:
        return {key: found[key] for key in ("exact.problem", "kl.coef")}
    sections = ["rewards", "truncation", *REFERENCE, *(["sft"] if config.corpus.demonstrations else [])]
    sections += ["reward_model"] if trains_reward(config) else []
    unused = {"model.separate_critic"} | (set() if trains_reward(config) else {"corpus.preferences"})
    unused |= set() if config.truncation.rule in ("penalty", "replace") else {"truncation.value"}
    single = {"exact.problem", "kl.coef", "kl.controller", "ppo.score_clip", "ppo.score_normalize"}
    single |= {"evaluation.prompts", "evaluation.residual_prompts"}
    return {
        key: value
        for key, value in found.items()
        if (key.partition(".")[0] in sections or key in single) and key not in unused
    }


def trains_reward(config: Config) -> bool:
    """True if a reward of the run is a model that is trained first: `trained` without a path."""
    return any(r.use in TRAINED_REWARD_NAMES and not r.options.get("path") for r in config.rewards.values())


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that do not have the same value everywhere, or are not everywhere; in order."""
    keys = dict.fromkeys(key for found in settings for key in found)
    return [key for key in keys if any(key not in s or s[key] != settings[0].get(key) for s in settings)]


def decides_score(key: str, config: Config) -> bool:
    """True if a setting decides what a score means; a trained reward model depends on the reference, too."""
    section = key.partition(".")[0]
    return section in ("rewards", "reward_model", "exact") or (trains_reward(config) and section in (*REFERENCE, "sft"))


def has(outcome: Outcome, name: str) -> bool:
    """True if a measure is known of a run of this variant."""
    return any(measures.get(name) is not None for measures in outcome.measures.values())
