"""Facts of a run read from the files in its directory; a file or key that is missing is a fact that is missing.

Not here: the facts themselves (run_facts.py), and the reading of each file (run_files.py).
"""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlhf.builtin.rewards import words_of
from minirlhf.config.layers import load_config
from minirlhf.errors import UserError
from minirlhf.report.of_run import UNBIASED, alarms, gain, is_evaluated
from minirlhf.report.run_facts import (
    NAN,
    BestOf,
    Course,
    Facts,
    RewardFact,
    SampledPair,
    Side,
    all_measured,
    beyond_chance,
)
from minirlhf.report.run_files import config_value, json_or_empty, read_config, read_metrics
from minirlhf.rl.doubts import doubts
from minirlhf.store.jsonl import read_rows
from minirlhf.store.layout import check_run
from minirlhf.tensors import ROUNDING

BEYOND_CHANCE = 4.0  # standard deviations: 1 in 16,000 by chance, so hardly one of a thousand words
WORDS = 6  # words that are named at most
FEWEST = 5  # iterations that a trend is fitted to at least


def facts_of_run(directory: Path) -> Facts:
    """Read the facts of a run, finished or not; UsageError if the directory holds no run."""
    check_run(directory)
    config, metrics = read_config(directory), read_metrics(directory)
    planned, seed = config_value(config, "ppo", "iterations"), config_value(config, "run", "seed")
    last = metrics[-1] if metrics else {}
    return Facts(
        run=shlex.quote(str(directory)),
        preset=str(config_value(config, "run", "preset") or directory.name),
        seed="unknown" if seed is None else str(seed),
        steps=last.get("step", 0),
        planned=planned if type(planned) is int else None,
        responses=finite(last.get("episode")),
        alarms=tuple(alarms(metrics, config)),
        doubts=doubts_of(directory),
        **(facts_of_config(config, metrics) | facts_of_evaluation(json_or_empty(directory / "evaluation.json"))),
        **facts_of_samples(directory),
        **facts_of_metrics(metrics, config),
    )


def finite(value: Any) -> float:
    """Number as float, NaN for anything else, and for one too large to have been computed in float32."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e100 else NAN


def doubts_of(directory: Path) -> tuple[str, ...]:
    """Doubts about the settings of a run, as they were printed before it; no plugin is loaded."""
    try:
        config, _ = load_config(str(directory / "config.toml"), kinds=())
    except UserError:  # a configuration of another version, or one that was edited: nobody knows what was said
        return ()
    return tuple(doubts(config))


# ---- config.toml ----------------------------------------------------------------------------------------------


def facts_of_config(config: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of the configuration, and what each reward gave."""

    def text(section: str, key: str) -> str:
        value = config_value(config, section, key)
        return value if isinstance(value, str) else ""

    adaptive, betas = text("kl", "controller") == "adaptive", finite_values(metrics, "kl/coef")
    sections = config.get("rewards")
    return {
        "rewards": tuple(
            reward_fact(label, reward, metrics)
            for label, reward in (sections.items() if isinstance(sections, dict) else ())
            if isinstance(reward, dict)
        ),
        "estimator": text("kl", "estimator"),
        "place": text("kl", "place"),
        "beta": betas[-1] if betas else finite(config_value(config, "kl", "coef")),
        "beta_first": betas[0] if betas else NAN,
        "target": finite(config_value(config, "kl", "target")) if adaptive else NAN,
        "truncation": text("truncation", "rule") or "keep",
        "score_normalize": config_value(config, "ppo", "score_normalize") is True,
        "score_clip": finite(config_value(config, "ppo", "score_clip")),
        "advantage": text("advantage", "function"),
        "loss": text("loss", "policy"),
        "value_coef": finite(config_value(config, "loss", "value_coef")),
        "separate_critic": config_value(config, "model", "separate_critic") is True,
        "best_of": finite(config_value(config, "evaluation", "best_of")),
        "residual_prompts": finite(config_value(config, "evaluation", "residual_prompts")),
        "problem": text("exact", "problem"),
    }


def reward_fact(label: str, section: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> RewardFact:
    """Fact of a reward from its section of the configuration and its metric."""
    first, last = first_and_last(metrics, f"reward/{label}")
    return RewardFact(
        label=label,
        use=str(section.get("use", label)),
        weight=finite(section.get("weight", 1.0)),
        normalize=section.get("normalize") is True,
        clip=finite(section.get("clip")),
        first=first,
        last=last,
        moved=beyond_chance(*trend_of(finite_values(metrics, f"reward/{label}"))),
    )


# ---- evaluation.json ------------------------------------------------------------------------------------------


def facts_of_evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Facts of the evaluation."""
    exact = evaluation.get("exact")
    exact = exact if isinstance(exact, dict) else {}
    low, high = both_ends(evaluation.get("score_gain_ci95"))
    true_low, true_high = both_ends(evaluation.get("true_score_gain_ci95"))
    rest_low, rest_high = both_ends(evaluation.get("true_score_gain_unrewarded_ci95"))
    parts, unknown = evaluation.get("true_score_rewarded"), evaluation.get("objective_unknown")
    beta = finite(evaluation.get("kl_coef"))  # that of J: an adaptive one moves once more after the last iteration
    return {
        "evaluated": bool(evaluation),
        "prompts": finite(evaluation.get("prompts")),
        "scored_pairs": finite(evaluation.get("score_pairs")),
        "before": side_fact(evaluation.get("reference")),
        "after": side_fact(evaluation.get("policy")),
        "gain": finite(evaluation.get("score_gain")),
        "gain_low": low,
        "gain_high": high,
        "kl": finite(evaluation.get("kl_nats_per_sequence")),
        **({} if math.isnan(beta) else {"beta": beta}),
        "true_gain": finite(evaluation.get("true_score_gain")),
        "true_low": true_low,
        "true_high": true_high,
        "rest_gain": finite(evaluation.get("true_score_gain_unrewarded")),
        "rest_low": rest_low,
        "rest_high": rest_high,
        "rewarded_parts": ", ".join(map(str, parts)) if isinstance(parts, list) else "",
        "j_unknown": unknown if isinstance(unknown, str) else "",
        "has_exact": bool(exact),
        "optimality": finite(evaluation.get("optimality")),
        "exact_j": finite(exact.get("objective")),
        "exact_best": finite(exact.get("best")),
        **facts_of_objective(evaluation.get("objective")),
    }


def side_fact(side: Any) -> Side:
    """Measures of a side; NaN for those that are missing."""
    known = side if isinstance(side, dict) else {}
    return Side(**{name: finite(known.get(name)) for name in Side.__dataclass_fields__})


def both_ends(ends: Any) -> tuple[float, float]:
    """Both ends of an interval, NaN if there is none."""
    return (finite(ends[0]), finite(ends[1])) if isinstance(ends, list) and len(ends) == 2 else (NAN, NAN)


def facts_of_objective(found: Any) -> dict[str, Any]:
    """Facts of J = score - beta KL; none of a file without the key, or where it is null."""
    if not isinstance(found, dict):
        return {}
    points, known = found.get("best_of_n"), found.get("best_known")
    low, high = ends_of_lead(found, "reference", found.get("policy_gain_ci95"))
    return {
        "j_reference": finite(found.get("reference")),
        "j_policy": finite(found.get("policy")),
        "j_prompts": finite(found.get("prompts")),
        "j_low": low,
        "j_high": high,
        "best_of_n": tuple(best_of_fact(x, found) for x in points if is_point(x)) if isinstance(points, list) else (),
        "best_known": str(known.get("what", "")) if isinstance(known, dict) else "",
        "share": finite(found.get("share_at_most")),
    }


def is_point(value: Any) -> bool:
    """True for a point of best-of-n whose J is known."""
    return isinstance(value, dict) and type(value.get("n")) is int and all_measured(finite(value.get("objective")))


def best_of_fact(point: dict[str, Any], found: dict[str, Any]) -> BestOf:
    """Fact of a point of best-of-n."""
    low, high = ends_of_lead(found, f"best of {point['n']}", point.get("policy_lead_ci95"))
    return BestOf(point["n"], finite(point["objective"]), beaten=low > 0, beats=high < 0)


def ends_of_lead(found: dict[str, Any], rival: str, ends: Any) -> tuple[float, float]:
    """Both ends of the policy's J minus a rival's; 0 and 0 if the verdict takes the difference for one of rounding."""
    low, high = both_ends(ends)
    rounding = found.get("verdict") == {"against": rival, "outcome": "not told apart"} and (low > 0 or high < 0)
    return (0.0, 0.0) if rounding else (low, high)


# ---- samples.jsonl --------------------------------------------------------------------------------------------


def facts_of_samples(directory: Path) -> dict[str, Any]:
    """Facts of the completions that the evaluation wrote side by side into samples.jsonl."""
    rows = [row for row in read_rows(directory / "samples.jsonl") if is_evaluated(row)]
    more, less = changed_words([(row["reference"], row["policy"]) for row in rows])
    scored = sorted((row for row in rows if all_measured(row["reference_score"], row["policy_score"])), key=gain)
    middle = scored[(len(scored) - 1) // 2] if scored else None
    return {
        "pairs": len(rows),
        "words_more": more,
        "words_less": less,
        "typical": middle and pair_fact(middle),
    }


def pair_fact(row: dict[str, Any]) -> SampledPair:
    """SampledPair of a row, each text on one line; a text without letters is said to be nothing."""
    prompt, before, after = (" ".join(row[key].split()) or "(nothing)" for key in ("prompt", "reference", "policy"))
    return SampledPair(prompt, before, after, float(row["reference_score"]), float(row["policy_score"]))


def changed_words(pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Words that are in more, and in fewer, completions after than before: texts `word 11 -> 81, ...`.

    pairs: completions before and after to the same prompts. McNemar's test: of the b + c pairs in which one completion
    alone has the word, b after and c before, chance gives each side half; (b - c) / sqrt(b + c) has variance 1.
    """
    before, after, gained, lost = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for texts_of_pair in pairs:
        old, new = (set(words_of(text)) for text in texts_of_pair)
        before.update(old)
        after.update(new)
        gained.update(new - old)
        lost.update(old - new)
    sizes = {word: (gained[word] - lost[word]) / math.sqrt(gained[word] + lost[word]) for word in {*gained, *lost}}

    def named(sign: int) -> str:
        sure = sorted((-abs(size), word) for word, size in sizes.items() if sign * size >= BEYOND_CHANCE)
        return ", ".join(f"{word} {before[word]} -> {after[word]}" for _, word in sure[:WORDS])

    return named(1), named(-1)


# ---- metrics.jsonl --------------------------------------------------------------------------------------------


def finite_values(metrics: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Finite values of a metric over the iterations that have one."""
    values = (finite(row.get(name)) for row in metrics)
    return [value for value in values if not math.isnan(value)]


def first_and_last(metrics: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    """Value of the first iteration, and mean over the last fifth of them."""
    values = finite_values(metrics, name)
    tail = values[-max(1, len(values) // 5) :]
    return (values[0], sum(tail) / len(tail)) if values else (NAN, NAN)


def facts_of_metrics(metrics: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Facts of the metrics over the iterations."""
    errors = finite_values(metrics, "count/reward_errors")
    clips = [(finite(row.get("policy/clipfrac_avg")), row["step"]) for row in metrics]
    clips = [clip for clip in clips if all_measured(*clip)]
    most, step = max(clips, default=(NAN, 0))
    return {
        "repetition": first_and_last(metrics, "response/repetition"),
        "entropy": first_and_last(metrics, "policy/entropy_avg"),
        "kl_last": first_and_last(metrics, "objective/kl")[1],
        "course": score_course(metrics, config),
        "explained": first_and_last(metrics, "value/explained_variance")[1],
        "clipped": sum(share for share, _ in clips) / len(clips) if clips else NAN,
        "clipped_most": most,
        "clipped_at": step,
        "unscored": sum(finite_values(metrics, "count/unscored")),
        "lost_iterations": sum(error > 0 for error in errors),
    }


def score_course(metrics: Sequence[dict[str, Any]], config: dict[str, Any]) -> Course:
    """Course of the score; nothing of a run whose logged scores are normalised by the run so far."""
    rows = [row for row in metrics if not math.isnan(finite(row.get("objective/scores")))]
    if len(rows) < 2 or config_value(config, "ppo", "score_normalize") is True:
        return Course()
    scores = [float(row["objective/scores"]) for row in rows]
    tail = max(1, len(rows) // 5)
    first, last = scores[0], sum(scores[-tail:]) / tail
    group = finite(
        config_value(config, "ppo", "responses_per_prompt")
    )  # responses to one prompt are no independent ones
    size = finite(rows[-1].get("episode")) / max(1, rows[-1]["step"]) / (group if group >= 1 else 1)
    spread = [finite(row.get("objective/scores_std")) for row in (rows[0], rows[-1])]
    if math.isclose(last, first, rel_tol=ROUNDING):
        last = first  # the mean of equal numbers may differ from them in its last bit
    gone = [(score - first) / (last - first) if last != first else 1.0 for score in scores]
    half, most = (next(row["step"] for row, g in zip(rows, gone, strict=True) if g >= part) for part in (0.5, 0.9))
    fitted = max(FEWEST, len(rows) // 3)
    slope, error = trend_of(objective_values(rows, config)[-fitted:])
    return Course(
        first=first, last=last, half=half, most=most, fitted=fitted, trend=slope, trend_noise=error,
        noise=math.sqrt((spread[0] ** 2 + spread[1] ** 2 / tail) / size) if size > 0 else NAN,
    )  # fmt: skip


def objective_values(rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> list[float]:
    """J = score - beta KL of each iteration, beta that of the last one; nothing if the KL's estimator is biased."""
    beta = finite(rows[-1].get("kl/coef"))
    values = [float(row["objective/scores"]) - beta * finite(row.get("objective/kl")) for row in rows]
    return values if config_value(config, "kl", "estimator") in UNBIASED and all_measured(*values) else []


def trend_of(values: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line through values at 0, 1, 2, ..., and its standard error; NaN below FEWEST values.

    slope = sum (t - mean t) y / sum (t - mean t)^2; error^2 = sum residual^2 / (n - 2) / sum (t - mean t)^2.
    """
    if len(values) < FEWEST:
        return NAN, NAN
    size, mean = len(values), sum(values) / len(values)
    times = [t - (size - 1) / 2 for t in range(size)]
    square = sum(t * t for t in times)
    slope = sum(t * y for t, y in zip(times, values, strict=True)) / square
    if abs(slope) * size <= ROUNDING * max(map(abs, values)):
        slope = 0.0  # of equal numbers it may be a last bit
    rest = sum((y - mean - slope * t) ** 2 for t, y in zip(times, values, strict=True))
    return slope, math.sqrt(rest / (size - 2) / square)
