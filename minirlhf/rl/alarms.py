"""Alarms: frequent problems of a run, noticed while it goes on; each once, with one sentence of advice.

They compare the metrics of an iteration with those of the first one and change nothing. None is a proof; each is a
reason to look at samples.jsonl. docs/metrics.md says where each threshold comes from: two things have to be seen, an
effect that matters and more responses than chance would need for it.

Not here: advice about a configuration before it runs (doubts.py).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean, median
from typing import Any

from minirlhf.rl.metrics import Metrics
from minirlhf.tensors import ROUNDING

ENOUGH = 64  # responses, or groups, behind a number that is compared: a share of so many is known to 1/16 (one s.e.)
SURE = 3.0  # standard errors between two shares that differ; chance alone does that once in 700 looks
CHANCE = 16  # responses: if all of them agree, fewer than one in six others would not (95 %: 1 - 0.05^(1/16) = 0.17)
SETTLED = 10  # iterations in a row, by chance all below 0 once in 2^10 if V is as good as a constant
WORSE = -0.1  # explained variance, median of those iterations, from which V is worse than a constant by a tenth
DROWNED = 1e5  # gradient norm over |d policy loss / d log pi|; 0.1 to 2 in healthy runs
CERTAIN = 1e-3  # nats a token: the likeliest token has all but 1e-4 of the probability, p (1 - log p) = 1e-3
COMPARED = (
    *("response/length", "response/repetition", "response/eos_rate", "policy/entropy_avg"),
    "objective/score_length_correlation",
)  # means over at least ENOUGH responses are compared with the first such mean
LOOKED_AT = (*COMPARED, "value/explained_variance")
FLAT = "count/flat_groups"  # only where a prompt has several responses


@dataclass
class Alarms:
    """Alarms of one run.

    learns_values: True if V is trained; may_end: True if a response can end by itself; last: its last iteration;
    prompts: of an iteration; group: responses to each of them.
    """

    learns_values: bool
    may_end: bool = True
    last: int | None = None
    prompts: int = ENOUGH
    group: int = 1
    first: Metrics = field(default_factory=dict)
    before: Metrics = field(default_factory=dict)  # first means of COMPARED
    recent: deque[Metrics] = field(default_factory=lambda: deque(maxlen=ENOUGH))  # LOOKED_AT and FLAT
    said: set[str] = field(default_factory=set)
    idle: bool = True  # no iteration so far has taught the policy anything
    cut_off: bool = True  # no response so far has ended by itself
    unused: set[str] | None = None  # reward/LABEL of the rewards that have given no score so far

    def look(self, step: int, metrics: Metrics) -> list[str]:
        """Check the metrics of an iteration; return the alarms that are new.

        An iteration without updates is no measure for later ones. One whose reward failed has a warning of its own.
        """
        if metrics["count/reward_errors"]:
            return []
        lost, by_chance = nothing_learned(metrics)
        self.idle = self.idle and bool(lost)
        self.cut_off = self.cut_off and metrics["response/eos_rate"] == 0
        silent = {name for name, x in metrics.items() if x != x and name.startswith("reward/") and name.count("/") == 1}
        self.unused = silent if self.unused is None else self.unused & silent
        found = list[tuple[str, str]]()
        enough = metrics["episode"] >= CHANCE or step == self.last
        if lost and (not by_chance or (self.idle and enough)):
            found.append(("nothing", lost))
        if metrics["count/updates"]:
            # 0.0 + x: a row of a file that somebody edited fails here, before it can spoil later looks.
            self.recent.append({name: 0.0 + metrics[name] for name in LOOKED_AT} | {FLAT: metrics.get(FLAT, 0.0)})
            self.first = self.first or metrics
            found += [*self._trends(step), *self._alarms(step), *self._idle_alarms(self.first, step, metrics)]
        found = [(name, text) for name, text in found if name not in self.said]
        self.said |= {name for name, _ in found}
        return [text for _, text in found]

    def replay(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, str]]:
        """Look at rows as `read_rows` gives them; yield (step, alarm). A row that somebody edited is passed over."""
        for row in rows:
            with suppress(KeyError, TypeError, ArithmeticError):
                for text in self.look(row["step"], row):
                    yield row["step"], text

    def _latest(self, name: str, count: int) -> float:
        """Mean of a metric over the latest `count` iterations, or over all there are."""
        return fmean(m[name] for m in islice(reversed(self.recent), count))

    def _trends(self, step: int) -> Iterator[tuple[str, str]]:
        """Alarms that compare the latest iterations with the first ones, so many that both are ENOUGH responses."""
        responses = self.prompts * self.group
        iterations = min(-(-ENOUGH // responses), len(self.recent))
        count = iterations * responses
        if count < ENOUGH and step != self.last:
            return
        now = {name: self._latest(name, iterations) for name in COMPARED}
        self.before = first = self.before or now
        together, grown = (
            now["objective/score_length_correlation"],
            now["response/length"] / max(first["response/length"], 1e-9),
        )
        if abs(together) > 0.7 and not 0.7 < grown < 1.4:
            yield (
                "length",
                f"the score goes with the length (correlation {together:+.2f}) and responses are {grown:.1f} times as "
                "long as at first: the reward may pay for length alone; look at samples.jsonl, or raise kl.coef",
            )
        repeated, before = now["response/repetition"], first["response/repetition"]
        if repeated > max(0.2, 2 * before) and surely_below(before, repeated, count):
            yield (
                "repetition",
                f"{repeated:.0%} of the token triples in a response were there before ({before:.0%} at first): the "
                "policy repeats itself; add the reward repetition, or raise kl.coef",
            )
        ends, before = now["response/eos_rate"], first["response/eos_rate"]
        if ends < before / 2 and surely_below(ends, before, count):
            yield (
                "eos",
                f"only {ends:.0%} of the responses still end by themselves ({before:.0%} did at first): set "
                "truncation.rule to penalty, or raise kl.coef",
            )
        entropy, before = now["policy/entropy_avg"], first["policy/entropy_avg"]
        if entropy < 0.2 * before and before >= CERTAIN:
            yield (
                "entropy",
                f"the entropy fell from {before:.2f} to {entropy:.2f} nats a token: the policy writes one thing; raise "
                "kl.coef or loss.entropy_coef, or lower ppo.lr",
            )

    def _alarms(self, step: int) -> Iterator[tuple[str, str]]:
        """Alarms of the latest iterations by themselves: groups that score alike, a V that is of no use."""
        iterations = min(-(-ENOUGH // self.prompts), len(self.recent))
        flat = self._latest(FLAT, iterations)
        if flat > 0.5 and (iterations * self.prompts >= ENOUGH or step == self.last):
            yield (
                "groups",
                f"in {flat:.0%} of the groups all responses score the same, so that nothing is learned from them: use "
                "a graded reward, or more responses a prompt",
            )
        explained = [m["value/explained_variance"] for m in islice(reversed(self.recent), SETTLED)]
        useless = len(explained) == SETTLED and all(x < 0 for x in explained) and median(explained) < WORSE
        if self.learns_values and useless:
            yield (
                "values",
                f"V predicts the rewards to come worse than a constant would (explained variance below 0 in {SETTLED} "
                f"iterations, now {explained[0]:.2f}): raise loss.value_coef, give V a trunk of its own "
                "(model.separate_critic), or take a "
                "function without V",
            )

    def _idle_alarms(self, first: Metrics, step: int, m: Metrics) -> Iterator[tuple[str, str]]:
        """Alarms of a run that can hardly learn anything as it is."""
        if self.cut_off and self.may_end and (m["episode"] >= CHANCE or step == self.last):
            yield (
                "eos",
                "no response ends by itself, so that what is scored are beginnings and the end is never learned: raise "
                "sampler.max_new_tokens, or set truncation.rule",
            )
        if m["policy/grad_norm"] > DROWNED * m["policy/logprob_grad_avg"] > 0:
            yield (
                "drowned",
                f"nearly all of the gradient (norm {m['policy/grad_norm']:.1g}) comes from the value loss or the KL "
                "loss, so that next to nothing is learned from the advantages: bring the scores to a usual scale "
                "(normalize), or lower loss.value_coef or kl.coef",
            )
        if self.unused and (m["episode"] >= 8 * CHANCE or step == self.last):
            labels = ", ".join(sorted(name.removeprefix("reward/") for name in self.unused))
            yield (
                "unused",
                f"no response so far has a score by {labels} (None each time), although others score: see what it "
                "needs, such as a column of the prompts, or leave it out",
            )
        if first["policy/entropy_avg"] < CERTAIN:
            yield (
                "entropy",
                f"the entropy is {first['policy/entropy_avg']:.1g} nats a token from the start: all responses to a "
                "prompt are the same, so that there is nothing to choose from; raise sampler.temperature",
            )


def surely_below(low: float, high: float, count: int) -> bool:
    """True if a share rose from low to high by more than chance explains, each measured on `count` responses.

    The difference of two shares around p has a standard error of sqrt(2 p (1 - p) / count), p being their mean. A mean
    of numbers between 0 and 1, such as each response's repetition, has that at most.
    """
    mean = (low + high) / 2
    return high - low > SURE * math.sqrt(2 * max(mean * (1 - mean), 0.0) / count)  # an edited file may hold any number


def nothing_learned(m: Metrics) -> tuple[str, bool]:
    """Reason why this iteration taught the policy nothing, with advice ("" if it did), and True if it may be chance."""
    if not m["count/updates"]:
        if m["count/unscored"] == m["count/masked_rows"]:
            reason = "no reward applies to any of the responses (each returned None)"
            advice = "see what the rewards need, such as a column of the prompts"
        elif not m["count/unscored"] and not m["response/eos_rate"]:
            reason = "no response takes part, because all are cut off and truncation.rule = mask leaves those out"
            advice = "raise sampler.max_new_tokens, or choose another rule"
        else:
            reason = "no response takes part: some have no score, or none to compare it with, others are cut off"
            advice = "look at samples.jsonl and at truncation.rule"
        some = m["count/unscored"] == m["count/masked_rows"]  # a reward of some prompts alone may have met none of them
        return f"{reason}, so that nothing is learned: {advice}", some
    if m.get("count/flat_groups", 0.0) > 0.5:
        return "", False  # the alarm `groups` says more
    score, spread = m["objective/scores"], m["objective/scores_std"]
    # A smaller spread beside the scores is rounding. NaN: a single score. Rewards of single tokens may still teach.
    if spread <= ROUNDING * abs(score) and not m.get("count/token_rewards"):
        return (
            f"all responses of an iteration have the same score (now {score:+.2f}), or differ by no more than its "
            "rounding, so that nothing is learned from it: use a graded reward, take a large constant out of it, look "
            "at weights, clips and truncation.rule, or take more responses",
            True,
        )
    if m["count/flat_batches"]:
        return (
            "the advantages of all tokens are 0, so that nothing is learned from the rewards: whitening or a baseline "
            "leaves nothing of a single number; take more responses an iteration, or look at the advantage function",
            spread != spread and score == 0 and m["response/length"] > 1,  # one response that scored 0
        )
    if m["policy/logprob_grad_avg"] == 0:
        return (
            "the gradient of the policy loss is 0 although the advantages are not, so that nothing is learned from "
            "them: look at its formula and its options, and run `minirlhf plugins check`",
            False,
        )
    return "", False
