"""Facts of a run as plain data: everything that `minirlhf explain` may say a sentence about.

A number that was not measured is NaN: every comparison with it is False, so that a sentence whose condition compares
it is not said. Not here: reading them from the files of a run (read_facts.py), and the sentences (sentences.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from minirlhf import PROJECT

NAN = math.nan
STUDENT = 3.2  # 97.5 % quantile of Student's t with 3 degrees of freedom; with more it is smaller


def all_measured(*values: float) -> bool:
    """True if none of the values is NaN."""
    return not any(math.isnan(value) for value in values)


def beyond_chance(slope: float, error: float) -> float:
    """Slope of a trend, 0 if it is within STUDENT standard errors; NaN if one of the two is."""
    return slope if abs(slope) > STUDENT * error else 0.0 if all_measured(slope, error) else NAN


@dataclass(frozen=True)
class RewardFact:
    """One reward: its settings, and the mean that it gave, unweighted: in the first iteration and in the last fifth.

    moved: its slope over all iterations; 0 if that may be chance, NaN if there are too few of them.
    """

    label: str
    use: str
    weight: float = 1.0
    normalize: bool = False
    clip: float = NAN
    first: float = NAN
    last: float = NAN
    moved: float = NAN

    @property
    def name(self) -> str:
        return self.label if self.use == self.label else f"{self.label} = {self.use}"

    @property
    def logged(self) -> bool:
        return all_measured(self.weight, self.first, self.last)

    @property
    def worse(self) -> bool:
        """True if it moved against the sign of its weight: by its slope, beyond chance, and from first to last."""
        return self.weight * self.moved < 0 and self.weight * (self.last - self.first) < 0


@dataclass(frozen=True)
class BestOf:
    """Best of n responses of the reference: its J = score - beta KL, and the 95 % interval of the policy's J minus it.

    beaten, beats: True if the policy is surely above, or surely below; neither where there is no interval.
    """

    n: int
    objective: float
    beaten: bool = False
    beats: bool = False


@dataclass(frozen=True)
class SampledPair:
    """Evaluated prompt with both completions and their scores."""

    prompt: str
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Side:
    """Measures of one side of the evaluation; the names are those of evaluation.json."""

    score_mean: float = NAN
    length_mean: float = NAN
    eos_rate: float = NAN
    distinct_2: float = NAN
    distinct_share: float = NAN
    residual_std: float = NAN
    residual_std_on_reference: float = NAN
    true_score_mean: float = NAN


@dataclass(frozen=True)
class Course:
    """Score over the iterations. first: of the first one; last: mean of the last fifth; scores, or NaN.

    noise: standard error of last - first. half, most: first iterations at which half and nine tenths of the way were
    gone. trend, trend_noise: slope an iteration of J = score - beta KL over the last `fitted` iterations, and its
    standard error; NaN if the run's estimator of the KL is biased.
    """

    first: float = NAN
    last: float = NAN
    noise: float = NAN
    half: int = 0
    most: int = 0
    fitted: int = 0
    trend: float = NAN
    trend_noise: float = NAN

    @property
    def rise(self) -> float:
        return self.last - self.first

    @property
    def sure(self) -> float:
        """Rise, 0 if it is within two standard errors, NaN if it was not measured."""
        return self.rise if abs(self.rise) > 2 * self.noise else 0.0 if all_measured(self.rise, self.noise) else NAN

    @property
    def end(self) -> float:
        """Trend at the end: 0 if it may be chance, NaN if there are too few iterations."""
        return beyond_chance(self.trend, self.trend_noise)


@dataclass(frozen=True)
class Facts:
    """All facts about a run. Numbers that were not measured are NaN, texts empty, lists without items."""

    run: str = "RUN"  # its directory, quoted for a shell
    preset: str = "run"
    seed: str = "0"
    steps: int = 0
    planned: int | None = None
    responses: float = NAN  # in all iterations
    rewards: tuple[RewardFact, ...] = ()
    estimator: str = ""
    place: str = ""
    beta: float = NAN  # at the end
    beta_first: float = NAN
    target: float = NAN  # of an adaptive beta; NaN for a fixed one
    truncation: str = "keep"
    score_normalize: bool = False
    score_clip: float = NAN
    advantage: str = ""
    loss: str = ""
    value_coef: float = NAN  # loss.value_coef
    separate_critic: bool = False
    best_of: float = NAN  # evaluation.best_of
    residual_prompts: float = NAN  # evaluation.residual_prompts
    problem: str = ""
    evaluated: bool = False
    scored_pairs: float = NAN  # pairs of responses to one prompt that both have a score
    prompts: float = NAN
    before: Side = Side()
    after: Side = Side()
    gain: float = NAN
    gain_low: float = NAN
    gain_high: float = NAN
    kl: float = NAN  # nats a response
    true_gain: float = NAN
    true_low: float = NAN
    true_high: float = NAN
    rest_gain: float = NAN  # of the true score without the parts that the run was rewarded for
    rest_low: float = NAN
    rest_high: float = NAN
    rewarded_parts: str = ""
    j_reference: float = NAN
    j_policy: float = NAN
    j_prompts: float = NAN
    j_low: float = NAN  # interval of the policy's J minus that of the reference
    j_high: float = NAN
    j_unknown: str = ""  # reason why J is not known
    best_of_n: tuple[BestOf, ...] = ()
    best_known: str = ""
    share: float = NAN
    has_exact: bool = False
    optimality: float = NAN
    exact_j: float = NAN
    exact_best: float = NAN
    pairs: int = 0
    words_more: str = ""
    words_less: str = ""
    typical: SampledPair | None = None
    repetition: tuple[float, float] = (NAN, NAN)  # of the first and the last iteration, as the next one
    entropy: tuple[float, float] = (NAN, NAN)
    kl_last: float = NAN  # of the last iterations, by the run's estimator
    course: Course = Course()
    explained: float = NAN  # 0 without V, whose values all stay 0
    clipped: float = NAN  # mean share of tokens held back; NaN for a loss without a clip
    clipped_most: float = NAN
    clipped_at: int = 0
    unscored: float = 0.0
    lost_iterations: int = 0
    alarms: tuple[tuple[int, str], ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """True if all planned iterations are done."""
        return self.planned is not None and self.steps >= self.planned

    @property
    def finished(self) -> bool:
        return self.done and self.evaluated

    @property
    def normalized(self) -> str:
        return ", ".join(reward.label for reward in self.rewards if reward.normalize)

    @property
    def trained(self) -> str:
        """Labels of the rewards that are trained reward models."""
        return ", ".join(reward.label for reward in self.rewards if reward.use.removeprefix(f"{PROJECT}:") == "trained")

    @property
    def rest_known(self) -> bool:
        return bool(self.rewarded_parts) and all_measured(self.rest_gain, self.rest_low, self.rest_high)

    @property
    def j_known(self) -> bool:
        """True if J was measured; where the optimum is known, F says more."""
        return all_measured(self.j_reference, self.j_policy, self.j_prompts) and self.best_known != "optimum"

    @property
    def j_sure(self) -> bool:
        """True if the interval of the policy's J minus the reference's does not hold 0; without one it is not sure."""
        return self.j_low > 0 or self.j_high < 0

    @property
    def share_sure(self) -> bool:
        """True if J surely changed, and the best known, a best of n, is surely above the policy."""
        best = any(best.beats and f"best of {best.n}" == self.best_known for best in self.best_of_n)
        return best and (self.j_low > 0 or self.j_high < 0)

    @property
    def more_j_prompts(self) -> str:
        """Option that samples prompts for J, if the run has none."""
        return " --set evaluation.residual_prompts=64" if self.residual_prompts == 0 else ""

    @property
    def gain_known(self) -> bool:
        """True if the gain is that of both means: all prompts have a score on both sides."""
        known = all_measured(self.prompts, self.gain, self.before.score_mean, self.after.score_mean)
        return known and not self.scored_pairs < self.prompts

    @property
    def compared(self) -> str:
        return (
            f"In {self.prompts:.0f} pairs of responses" if self.has_exact else f"On {self.prompts:.0f} held-out prompts"
        )

    @property
    def compared_zh(self) -> str:
        return f"在 {self.prompts:.0f} 对回答中" if self.has_exact else f"在 {self.prompts:.0f} 条未参与训练的提示上"

    @property
    def gain_sure(self) -> bool:
        """True if the interval of the gain does not hold 0; a gain without interval is not sure."""
        return self.gain_low > 0 or self.gain_high < 0

    @property
    def same_score(self) -> bool:
        """True if the score that was learned from is the evaluation's, so that beta KL is a price in it."""
        plain = self.truncation == "keep" and not self.score_normalize and not all_measured(self.score_clip)
        return plain and all_measured(self.beta)

    @property
    def cost(self) -> float:
        """Score that the KL costs: beta KL."""
        return self.beta * self.kl

    @property
    def price(self) -> float:
        """Share of the gain that its KL costs."""
        return self.cost / self.gain

    @property
    def twice(self) -> int:
        return 2 * self.steps

    @property
    def more_prompts(self) -> int:
        return round(4 * self.prompts)

    @property
    def varied(self) -> float:
        """Share of distinct bigrams after, over that before."""
        return self.after.distinct_2 / self.before.distinct_2

    @property
    def lengthened(self) -> float:
        """Mean length of a response after, over that before."""
        return self.after.length_mean / self.before.length_mean if self.before.length_mean > 0 else NAN

    @property
    def beaten(self) -> str:
        return listed(best for best in self.best_of_n if best.beaten)

    @property
    def not_beaten(self) -> str:
        return listed(best for best in self.best_of_n if best.beats)

    @property
    def not_told_apart(self) -> str:
        return listed(best for best in self.best_of_n if not best.beaten and not best.beats)


def listed(best: Iterable[BestOf]) -> str:
    """Text of some of them with their J."""
    return ", ".join(f"best of {b.n} ({b.objective:+.3f})" for b in best)
