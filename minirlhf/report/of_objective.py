"""Sentences and rows on what a run reached of its own objective, and what it did not beat; and on its true score.

For the screen and for the report, from the content of evaluation.json, which may be damaged or of an older version. Not
here: the numbers (stages/objective.py, stages/true_score.py).
"""

from collections.abc import Iterator
from typing import Any

from minirlhf.report.page import number
from minirlhf.report.run_files import six_digits

TRUE_SCORE = "a review's friendly words, the aspects it names, no repetition, about 30 words"
Row = tuple[str, Any, Any, Any]  # what, score, KL in nats, J


def objective_rows(evaluation: dict[str, Any]) -> list[Row]:
    """Reference, best-of-n by rising n, policy and the optimum, as far as they are known; none without `objective`."""
    found = evaluation.get("objective")
    if not isinstance(found, dict):
        return []
    numbers: list[Any] = [found.get(key) for key in ("policy", "policy_kl", "beta")]
    j, kl, beta = numbers
    score = None if None in map(six_digits, numbers) else j + beta * kl
    rows: list[Row] = [("reference", found.get("reference"), 0.0, found.get("reference"))]
    rows += [
        (f"best of {number(point.get('n'), '.0f')}", point.get("score"), point.get("kl"), point.get("objective"))
        for point in objects_of(found.get("best_of_n"))
    ]
    rows.append(("policy", score, kl, j))
    best = object_of(found, "best_known")
    return [*rows, ("optimum", None, None, best.get("objective"))] if best.get("what") == "optimum" else rows


def objective_about(evaluation: dict[str, Any]) -> str:
    """Text on what J is, where it was measured, and what the score in it is after."""
    found = object_of(evaluation, "objective")
    left_out, rules = six_digits(found.get("prompts_left_out")), found.get("score_rules")
    lost = f"; prompts left out, since a response of theirs has no score: {left_out:g}" if left_out else ""
    after = f"; its score is after {' and '.join(map(str, rules))}" if isinstance(rules, list) and rules else ""
    prompts, beta = number(found.get("prompts"), ".0f"), number(found.get("beta"), "g")
    what = f"J = score - {beta} KL, what a run with these rewards maximises, on {prompts} prompts"
    return f"{what}, several responses to each; higher is better{after}{lost}"


def objective_sentences(evaluation: dict[str, Any]) -> Iterator[str]:
    """Yield what the policy beat and what beats it, and the share of the best J known; why, if J is not known."""
    found, reason = evaluation.get("objective"), evaluation.get("objective_unknown")
    if not isinstance(found, dict):
        if isinstance(reason, str):
            yield f"J = score - beta KL is not known, nor what beats this run: {reason}."
        return
    verdict, points = object_of(found, "verdict"), objects_of(found.get("best_of_n"))
    if not verdict:
        return  # the optimum is known: F says it all
    against = verdict.get("against")
    rival = next((p for p in points if f"best of {p.get('n')}" == against), None)
    who = "the reference" if rival is None else f"{against} of the reference's own responses"
    lead = with_ends(found, "policy_gain") if rival is None else with_ends(rival, "policy_lead")
    theirs = found.get("reference") if rival is None else rival.get("objective")
    form = form_of([found.get("policy"), theirs])
    own, other = number(found.get("policy"), form), number(theirs, form)
    largest = max((n for p in points if (n := six_digits(p.get("n"))) is not None), default=0)
    unmeasured = "" if rival is None else f" Best of more than {largest:g} was not measured."
    way, named = ("the model that it began with",) * 2 if rival is None else ("sampling", against)
    more = what_may_tell(evaluation, rival, verdict)
    yield {
        "beaten": f"{who[0].upper()}{who[1:]} has the higher objective ({other} against {own}; policy minus that: "
        f"{lead}): on this objective the run is beaten by {way}.",
        "beats": f"The policy has a higher objective than {who} ({own} against {other}; difference {lead}): on this "
        f"objective the run beats {named}.{unmeasured}",
    }.get(
        str(verdict.get("outcome")),
        f"The policy and {who} are not told apart ({own} against {other}; difference {lead}): on this objective the "
        f"run has not beaten {named}. {more}",
    )
    if not points:
        yield "Best-of-n of the reference was not measured, so it is not known whether sampling beats this run."
    best, share = object_of(found, "best_known"), six_digits(found.get("share_at_most"))
    if best.get("what") == "policy":
        yield "Nothing that was measured has a higher J; the optimum is not known."
    elif share is not None and share > 0 and verdict.get("outcome") == "beaten" and told_apart(found, "policy_gain"):
        own_goal = "the run's own objective" if isinstance(evaluation.get("exact"), dict) else "J"
        yield (
            f"Of what could be gained in {own_goal} the policy gained about {share:.0%} at most, an estimate from "
            f"{number(found.get('prompts'), '.0f')} prompts: the best J known is "
            f"{number(best.get('objective'), '+.3f')}, that of {best.get('what')}, and the optimum is at least that."
        )


def what_may_tell(evaluation: dict[str, Any], rival: dict[str, Any] | None, verdict: dict[str, Any]) -> str:
    """Sentence on what would tell a policy from its rival (None: the reference), or why nothing would."""
    found = object_of(evaluation, "objective")
    lead, name = (found, "policy_gain") if rival is None else (rival, "policy_lead")
    if lead.get(f"{name}_ci95") == [0.0, 0.0]:
        return "They are equal on every prompt."
    if told_apart(lead, name) and verdict.get("outcome") == "not told apart":
        return "The difference is no more than the rounding of such scores."
    sizes = [six_digits(x) for x in (found.get("prompts"), found.get("prompts_left_out", 0), evaluation.get("prompts"))]
    known = [x for x in sizes if x is not None]
    all_of_them = len(known) == 3 and known[0] + known[1] >= known[2]
    return f"More prompts may tell: {'evaluation.prompts and ' * all_of_them}evaluation.residual_prompts."


def true_score_sentences(evaluation: dict[str, Any]) -> Iterator[str]:
    """Yield what the true score is and how far a reward saw it, its gain, and that without the rewarded parts."""
    if "true_score_gain" not in evaluation:
        return
    seen, rewarded = evaluation.get("true_score_seen"), evaluation.get("true_score_rewarded")
    yield f"true score: {TRUE_SCORE}; higher is better" + (f"; {seen}" if isinstance(seen, str) else "")
    yield f"true score gain {with_ends(evaluation, 'true_score_gain')}"
    if isinstance(rewarded, list) and rewarded:
        yield f"without {' and '.join(map(str, rewarded))}: {with_ends(evaluation, 'true_score_gain_unrewarded')}"


def with_ends(found: dict[str, Any], name: str) -> str:
    """Number of this name with its 95 % interval, - if it was not measured."""
    ends = found.get(f"{name}_ci95")
    ends = ends if isinstance(ends, list) and len(ends) == 2 else []
    form = form_of([found.get(name), *ends])
    text = number(found.get(name), form)
    return f"{text} (95 % interval {number(ends[0], form)} to {number(ends[1], form)})" if ends else text


def form_of(values: list[Any]) -> str:
    """Format of some numbers side by side: three decimals, scientific where these show nothing of the largest."""
    largest = max((abs(x) for x in map(six_digits, values) if x is not None), default=0.0)
    return "+.3f" if largest == 0 or 0.0005 <= largest < 1e7 else "+.2e"


def told_apart(found: dict[str, Any], name: str) -> bool:
    """True if the 95 % interval of a number of this name is known and leaves out 0."""
    ends = found.get(f"{name}_ci95")
    numbers = [six_digits(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else [None]
    known = [end for end in numbers if end is not None]
    return len(known) == 2 and (known[0] > 0 or known[1] < 0)


def object_of(found: dict[str, Any], key: str) -> dict[str, Any]:
    """Object under a key; empty if there is none."""
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[dict[str, Any]]:
    """Objects of a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
