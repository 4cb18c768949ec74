"""Alarms: frequent problems of a run, noticed while it goes on; each once, with one sentence of advice.

They compare the metrics of an iteration with those of the first one and change nothing. None is a proof; each is a
reason to look at samples.jsonl. Not here: advice about a configuration before it runs (doubts.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from minirlhf.rl.metrics import Metrics

SETTLED = 10  # iterations after which V should be of some use


@dataclass
class Alarms:
    """Alarms of one run; learns_values: True if V is trained."""

    learns_values: bool
    first: Metrics = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def look(self, step: int, metrics: Metrics) -> list[str]:
        """Check the metrics of an iteration; return the alarms that are new."""
        first = self.first or metrics
        found = [(name, text) for name, text in self._alarms(first, step, metrics) if name not in self.said]
        self.first = first
        self.said |= {name for name, _ in found}
        return [text for _, text in found]

    def _alarms(self, first: Metrics, step: int, m: Metrics) -> Iterator[tuple[str, str]]:
        together, ends = m["objective/score_length_correlation"], m["response/eos_rate"]
        grown = m["response/length"] / max(first["response/length"], 1e-9)
        repeated, entropy = m["response/repetition"], m["policy/entropy_avg"]
        flat, explained = m.get("count/flat_groups", 0.0), m["value/explained_variance"]
        before = first["policy/entropy_avg"]
        if abs(together) > 0.7 and not 0.7 < grown < 1.4:
            yield (
                "length",
                f"the score goes with the length (correlation {together:+.2f}) and responses are {grown:.1f} times as "
                "long as at first: the reward may pay for length alone; look at samples.jsonl, or raise kl.coef",
            )
        if repeated > max(0.2, 2 * first["response/repetition"]):
            yield (
                "repetition",
                f"{repeated:.0%} of the token triples in a response were there before: the policy repeats itself; add "
                "the reward repetition, or raise kl.coef",
            )
        if ends < 0.5 < first["response/eos_rate"]:
            yield (
                "eos",
                f"only {ends:.0%} of the responses still end by themselves: set truncation.rule to penalty, or raise "
                "kl.coef",
            )
        if entropy < 0.2 * before:
            yield (
                "entropy",
                f"the entropy fell from {before:.2f} to {entropy:.2f} nats a token: the policy writes one thing; raise "
                "kl.coef or loss.entropy_coef, or lower ppo.lr",
            )
        if flat > 0.5:
            yield (
                "groups",
                f"in {flat:.0%} of the groups all responses score the same, so that nothing is learned from them: use "
                "a graded reward, or more responses a prompt",
            )
        if self.learns_values and step > SETTLED and explained < 0:
            yield (
                "values",
                f"V predicts the returns worse than a constant would (explained variance {explained:.2f}): raise "
                "loss.value_coef, or take model.separate_critic, or a function without V",
            )
