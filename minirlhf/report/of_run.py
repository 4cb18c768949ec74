"""report.html: the page of one run, finished or not, from the files in its directory.

Not here: reading these files (run_files.py, tokens.py), which trusts none of them, and the markup (run.html.j2).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirlhf.config.schema import CHOOSERS
from minirlhf.report.axes import least_spans
from minirlhf.report.of_objective import (
    object_of,
    objective_about,
    objective_rows,
    objective_sentences,
    true_score_sentences,
)
from minirlhf.report.page import number, render
from minirlhf.report.run_files import (
    config_text,
    config_value,
    json_or_empty,
    metric_names,
    metric_values,
    read_config,
    read_metrics,
    six_digits,
)
from minirlhf.report.token_data import kept_steps, packed
from minirlhf.report.tokens import (
    IN_NOTES,
    QUANTITIES,
    is_number,
    is_whole,
    logged_tokens,
    read_token_log,
)
from minirlhf.rl.alarms import Alarms
from minirlhf.store import checkpoint
from minirlhf.store.files import write_text
from minirlhf.store.jsonl import read_rows
from minirlhf.store.layout import check_run

REPORT = "report.html"
CURVES: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # title, meaning and unit, metrics
    ("score", "mean over an iteration's responses, after the rules for truncated ones", ("objective/scores",)),
    ("KL to the reference", "nats per sequence, by the run's estimator", ("objective/kl",)),
    ("KL coefficient", "beta, score per nat", ("kl/coef",)),
    ("optimality", "share of what can be gained that is gained", ("exact/optimality",)),
    ("entropy", "nats per token", ("policy/entropy_avg",)),
    ("response length", "tokens, EOS included", ("response/length",)),
    ("ended by itself", "share of the responses", ("response/eos_rate",)),
    ("clipped", "share of tokens: held back by the clip, and outside its range",
     ("policy/clipfrac_avg", "policy/outside_avg")),
    ("old and new policy", "mean of (log ratio)^2 / 2, nats per token", ("policy/approxkl_avg",)),
    ("value function", "explained variance: 1 is perfect, 0 a constant", ("value/explained_variance",)),
    ("losses", "means over the updates", ("loss/policy_avg", "loss/value_avg")),
    ("speed", "response tokens per second", ("tokens_per_s",)),
)  # fmt: skip
UNBIASED = ("k1", "k3", "exact")  # estimators whose mean over the policy's own responses is the KL
SIDES = (  # measures of both sides: title, key in evaluation.json, number format
    ("score, mean", "score_mean", "+.3f"),
    ("score, 90th percentile", "score_p90", "+.3f"),
    ("score, standard deviation", "score_std", ".3f"),
    ("tokens a response", "length_mean", ".1f"),
    ("ended by itself", "eos_rate", ".1%"),
    ("distinct completions", "distinct_share", ".1%"),
    ("distinct bigrams", "distinct_2", ".1%"),
    ("true score, mean", "true_score_mean", "+.3f"),
    ("residual, standard deviation", "residual_std", ".3f"),
)


def write_report(directory: Path) -> Path:
    """Write RUN/report.html and return its path; UsageError if the directory holds no run."""
    check_run(directory)
    path = directory / REPORT
    write_text(path, run_page(directory))
    return path


def run_page(directory: Path) -> str:
    """Text of the page of a run."""
    metrics = read_metrics(directory)
    logged = logged_tokens(directory / "tokens.jsonl")
    shown = kept_steps(logged)
    tokens = read_token_log(directory / "tokens.jsonl", shown)
    config = read_config(directory)
    evaluation = json_or_empty(directory / "evaluation.json")
    beside = [row for row in read_rows(directory / "samples.jsonl") if is_evaluated(row)]
    best = frontier(evaluation, config)
    data = {
        "curves": curves(metrics, config),
        "steps": [row["step"] for row in metrics],
        "metrics": {name: metric_values(metrics, name) for name in metric_names(metrics)},
        "frontier": best,
        "least": least_spans([metrics]),
        "tokens": packed(tokens),
        "quantities": [[key, *about, IN_NOTES.get(key, "")] for key, about in QUANTITIES.items()],
    }
    return render(
        "run.html.j2",
        "run.js",
        data,
        title=run_title(config, directory),
        directory=str(directory),
        config=config_text(directory),
        chosen=list(components_used(config)),
        rewards=", ".join(label for kind, label in components_used(config) if kind.startswith("reward ")) or "unknown",
        facts=list(provenance(directory)),
        progress=(metrics[-1]["step"] if metrics else 0, config_value(config, "ppo", "iterations")),
        cards=list(cards(evaluation)),
        best_of_n=bool(best["best_of_n"]),
        comparable=best["iterations"],
        few=best["few"],
        prompts=evaluation.get("prompts"),
        sides=list(sides(evaluation)),
        objective=objective_rows(evaluation),
        objective_about=objective_about(evaluation),
        beaten=list(objective_sentences(evaluation)),
        true_score=list(true_score_sentences(evaluation))[:1],
        checks=list(checks(metrics)),
        alarms=list(alarms(metrics, config)),
        beside=sorted(beside, key=gain, reverse=True),
        logged=len(logged),
        kept=len(shown),
    )


def run_title(config: dict[str, Any], directory: Path) -> str:
    """Title of the page: preset, seed N."""
    return f"{config_value(config, 'run', 'preset') or directory.name}, seed {config_value(config, 'run', 'seed')}"


def is_evaluated(row: dict[str, Any]) -> bool:
    """True if a row of samples.jsonl is of the evaluation: a prompt with completions and scores of both sides."""
    texts = all(isinstance(row.get(name), str) for name in ("prompt", "reference", "policy"))
    return texts and all(is_number(row.get(f"{side}_score", "")) for side in ("reference", "policy"))


def gain(row: dict[str, Any]) -> float:
    """Score of the policy's completion minus that of the reference's; 0 if one of them has none."""
    scores = [row[f"{side}_score"] for side in ("policy", "reference")]
    return 0.0 if any(x is None or x != x for x in scores) else float(scores[0] - scores[1])


# ---- what is shown ------------------------------------------------------------------------------------------


def curves(metrics: list[dict[str, Any]], config: dict[str, Any]) -> list[dict[str, Any]]:
    """Charts to draw: those whose metrics exist; beta only if it changes, single rewards only if there are several."""
    measured, charts = set(metric_names(metrics)), list[dict[str, Any]]()
    rewards = [name for name in metric_names(metrics) if name.startswith("reward/") and name.count("/") == 1]
    for heading, what, wanted in CURVES:
        drawn = [name for name in wanted if name in measured]
        if wanted == ("objective/scores",) and len(rewards) > 1:
            drawn += rewards
        if drawn and (wanted != ("kl/coef",) or len(set(metric_values(metrics, "kl/coef"))) > 1):
            charts.append({"title": heading, "what": what, "names": drawn})
    target = config_value(config, "kl", "target")
    if config_value(config, "kl", "controller") == "adaptive" and type(target) in (int, float):
        for chart in charts:
            if chart["names"] == ["objective/kl"]:
                chart["target"] = six_digits(target)
    return charts


def frontier(evaluation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Points of score against KL: the final policy, and best-of-n of the reference, each with its standard error.

    `iterations` is True if the training iterations can be drawn beside them: no rule for truncated responses and no
    normalisation changed their scores, and their KL estimator is unbiased.
    """
    plain_scores = (
        config_value(config, "truncation", "rule") == "keep" and config_value(config, "ppo", "score_normalize") is False
    )
    counts: list[Any] = [config_value(config, "evaluation", "residual_prompts"), evaluation.get("prompts")]
    points = evaluation.get("best_of_n")
    best = [p for p in points if isinstance(p, dict)] if isinstance(points, list) else []
    policy = evaluation.get("policy")
    return {
        "iterations": plain_scores and config_value(config, "kl", "estimator") in UNBIASED,
        "best_of_n": [[six_digits(p.get(key)) for key in ("kl", "score", "score_se")] for p in best],
        "policy": [
            six_digits(evaluation.get("kl_nats_per_sequence")),
            six_digits(policy.get("score_mean") if isinstance(policy, dict) else None),
            error_of_mean(policy.get("score_std"), evaluation.get("prompts")) if isinstance(policy, dict) else None,
        ],
        "responses": responses_of(config),
        "few": min((n for n in counts if is_whole(n)), default=None),
        "prompts": six_digits(evaluation.get("prompts")),
    }


def error_of_mean(std: Any, count: Any) -> float | None:
    """Standard error of a mean: std / sqrt(count); None if one of them is not known."""
    spread = six_digits(std)
    return spread / count**0.5 if spread is not None and is_whole(count) and count else None


def responses_of(config: dict[str, Any]) -> int | None:
    """Responses of an iteration; None if the configuration does not say."""
    counts = [config_value(config, "ppo", key) for key in ("prompts_per_iteration", "responses_per_prompt")]
    return counts[0] * counts[1] if all(is_whole(n) and n < 1 << 20 for n in counts) else None


def cards(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Headline numbers of the evaluation, those that exist: (value, meaning with its 95 % interval).

    A gain that is null was not measured, because no reward applied; an optimality that is null has nothing to say.
    """
    wanted = (
        ("score_gain", "+.3f", "score gain"),
        ("true_score_gain", "+.3f", "true score gain"),
        ("true_score_gain_unrewarded", "+.3f", "of it without what this run is rewarded for"),
        ("win_rate", ".0%", "of the held-out prompts better than before, ties by half"),
        ("kl_nats_per_sequence", ".2f", "KL to the reference, nats per sequence"),
        ("optimality", ".4f", f"optimality F{of_objective(evaluation.get('exact'))}"),
    )
    for key, form, what in wanted:
        unmeasured = key in ("score_gain", "win_rate") and key in evaluation and evaluation[key] is None
        if unmeasured or six_digits(evaluation.get(key)) is not None:
            ends = evaluation.get(f"{key}_ci95")
            interval = ""
            if isinstance(ends, list) and len(ends) == 2:
                interval = f", 95 % interval {number(ends[0], form)} to {number(ends[1], form)}"
            yield number(evaluation[key], form), what + interval
    seconds = evaluation.get("seconds")
    if isinstance(seconds, dict):
        ppo = f"{number(seconds.get('ppo'), '.0f')} of them PPO"
        yield f"{number(seconds.get('total'), '.0f')} s", f"in all, {ppo}; of a resumed run: since it was resumed"


def of_objective(exact: Any) -> str:
    """Objective that F is about, as a suffix; "" where the evaluation does not say. exact: of evaluation.json."""
    if not isinstance(exact, dict) or six_digits(exact.get("beta")) is None:
        return ""
    changed = exact.get("changed")
    other = (
        f"; the run optimised another ({', '.join(map(str, changed))})" if isinstance(changed, list) and changed else ""
    )
    return f" of the problem's score - {number(exact['beta'], 'g')} KL{other}"


def sides(evaluation: dict[str, Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """Before against after, a line a measure."""
    before, after = evaluation.get("reference"), evaluation.get("policy")
    if isinstance(before, dict) and isinstance(after, dict):
        for name, key, form in SIDES:
            if key in before:
                yield name, before.get(key), after.get(key), form
            if key == "true_score_mean":
                yield from parts_of_true_score(evaluation)
        if "residual_std_on_reference" in after:  # the reference's own responses are those of the row above
            yield "  on the reference's texts", before.get("residual_std"), after["residual_std_on_reference"], ".3f"


def parts_of_true_score(evaluation: dict[str, Any]) -> Iterator[tuple[str, Any, Any, str]]:
    """Parts of the true score before and after; those that the run is rewarded for say so."""
    rewarded = evaluation.get("true_score_rewarded")
    before, after = (object_of(object_of(evaluation, side), "true_score_parts") for side in ("reference", "policy"))
    for name in before:
        paid = isinstance(rewarded, list) and name in rewarded
        yield f"  {name}{' (rewarded)' if paid else ''}", before.get(name), after.get(name), "+.3f"


def checks(metrics: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any, str, str]]:
    """Signs of a hacked reward: (title, first value, last value, number format, how to read it)."""
    wanted = (
        ("score and length, correlation", "objective/score_length_correlation", "+.2f",
         "far from 0 while responses grow or shrink: the reward may pay for length alone"),
        ("tokens a response", "response/length", ".1f",
         "a reward that does not mention it should leave it about as it was"),
        ("repeated token triples", "response/repetition", ".1%", "the policy found a phrase that pays, and repeats it"),
        ("ended by itself", "response/eos_rate", ".1%", "falls when going on pays more than coming to an end"),
        ("entropy, nats per token", "policy/entropy_avg", ".2f", "near 0 the policy writes one thing"),
        ("groups that score the same", "count/flat_groups", ".0%", "nothing is learned from those"),
        ("explained variance of V", "value/explained_variance", "+.2f", "below 0 V is worse than a constant"),
    )  # fmt: skip
    for name, key, form, how in wanted:
        seen = [x for x in metric_values(metrics, key) if x is not None]
        if seen:
            yield name, seen[0], seen[-1], form, how


def alarms(metrics: list[dict[str, Any]], config: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Alarms of a run, recomputed from its metrics: (step, text).

    learns_values=True is safe for every run: an untrained V has explained variance 0, which raises no alarm.
    """
    may_end, last = config_value(config, "exact", "problem") is None, config_value(config, "ppo", "iterations")
    sizes = {
        "prompts": config_value(config, "ppo", "prompts_per_iteration"),
        "group": config_value(config, "ppo", "responses_per_prompt"),
    }
    known: dict[str, Any] = {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}
    yield from Alarms(learns_values=True, may_end=may_end, last=last, **known).replay(metrics)


def components_used(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Components of a run with their options: (kind, or reward and its label; text); first a model of one's own."""
    model, lora = object_of(config, "model"), object_of(config, "lora")
    if model.get("path"):
        yield "model", options(str(model["path"]), {k: model[k] for k in ("dtype", "quantise") if model.get(k)})
    if lora.get("rank") or lora.get("path"):
        yield "adapters", options("LoRA", {key: value for key, value in lora.items() if value})
    for kind, key in CHOOSERS.items():
        section = config.get(kind)
        if isinstance(section, dict):
            yield kind, options(str(section.get(key)), {k: v for k, v in section.items() if k != key})
    rewards = config.get("rewards")
    for label, reward in rewards.items() if isinstance(rewards, dict) else ():
        if isinstance(reward, dict):
            yield (
                f"reward {label}",
                options(str(reward.get("use", label)), {k: v for k, v in reward.items() if k != "use"}),
            )


def options(name: str, values: dict[str, Any]) -> str:
    """Text of a component: name (key = value, ...)."""
    written = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
    listed = ", ".join(f"{key} = {value}" for key, value in written.items())
    return f"{name} ({listed})" if listed else name


def provenance(directory: Path) -> Iterator[tuple[str, str]]:
    """Versions and hashes from the newest checkpoint, the reference and the plugin files: (title, value)."""
    newest = checkpoint.all_of(directory / "checkpoints")
    state = json_or_empty(newest[-1] / "state.json") if newest else {}
    for name in ("minirlhf", "torch", "python", "device", "threads", "tokenizer", "prompts", "reward_models"):
        if state.get(name):
            yield name.replace("_", " "), str(state[name])
    reference = json_or_empty(directory / "reference" / "reference.json")
    if reference:
        yield "reference", str(reference.get("weights_sha256"))
    code = state.get("code")
    for path, digest in code.items() if isinstance(code, dict) else ():
        yield f"plugin {path}", str(digest)
