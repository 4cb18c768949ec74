"""Where a proxy and what it stands for part: PPO at several KL coefficients on reward models of several sizes.

The setting of Gao, Schulman and Hilton (2210.10760) at this size: the comparisons were judged by a hidden true score
with noise, a reward model is trained from so many of them, PPO is run against it at every coefficient (a run each, not
one long trajectory), and the true score of what comes out is held against the proxy's and the KL that was spent. Beside
it best-of-n on the same reward model. Every seed draws its own comparisons (all of them, where that is the size),
trains its own reward model on them and samples its own responses.

    OUT/overoptimise.json, and what `compare` leaves there

Not here: running (compare.py, run.py), drawing (pictures.py), printing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlhf.config.schema import Config
from minirlhf.errors import UsageError, UserError
from minirlhf.events import Emit
from minirlhf.models.generate import generate
from minirlhf.models.rollout import Rollout
from minirlhf.pipeline.build import TRAINED_REWARD_NAMES, build_rewards, filled_rewards, set_up
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.pipeline import run
from minirlhf.pipeline.rewards import fit_rewards
from minirlhf.pipeline.saved import heldout_prompts, open_run
from minirlhf.rewards.call import call_rewards
from minirlhf.stages.data import batch
from minirlhf.stages.evaluate import ROWS, best_of_n_kl, chances_of_best
from minirlhf.stages.preferences import FILE as REPORT
from minirlhf.stages.preferences import read_pairs, reward_model_place
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, true_scores
from minirlhf.store.files import read_json, write_json
from minirlhf.streams import generator
from minirlhf.studies.compare import Runner, compare
from minirlhf.studies.grid import Cell, Outcome, grid, place, resolve
from minirlhf.studies.summary import measures_of

RESULT = "overoptimise.json"
PROMPTS = 64  # held-out prompts of best-of-n
SEEDED = ("reward_model.seed",)


@dataclass(frozen=True)
class Point:
    """A size of data and a coefficient over the seeds, or a size and an n: means, with standard errors of the means.

    kl: nats per sequence; distance: its square root; proxy: in standard deviations of the start's own; truth: the true
    score. `by_seed` has the true scores that `truth` is the mean of.
    """

    setting: float
    kl: float
    distance: float
    proxy: float
    proxy_se: float
    truth: float
    truth_se: float
    by_seed: list[float]


@dataclass(frozen=True)
class Curve:
    """What one size of data gave: a point a coefficient, by rising KL, and best-of-n by rising n.

    accuracy: mean held-out accuracy of its reward models.
    """

    pairs: int
    accuracy: float
    points: list[Point]
    best_of: list[Point]

    def verdict(self) -> dict[str, Any]:
        """spearman: rank correlation of proxy and sqrt(KL) over the points; peak and end: mean true scores; fall: what
        the true score loses from the peak to the largest KL, with the standard error of its mean over the seeds.

        Whoever picks the highest of several means picks luck as well. So the peak that a seed falls from is where the
        mean of the *other* seeds is highest.
        """
        peak, end = max(self.points, key=lambda point: point.truth), self.points[-1]
        truth = torch.tensor([point.by_seed for point in self.points], dtype=torch.float64)  # (points, seeds)
        others = truth.sum(dim=1, keepdim=True) - truth if truth.shape[1] > 1 else truth
        fall = truth.gather(0, others.argmax(dim=0, keepdim=True)).squeeze(0) - truth[-1]
        return {
            "spearman": spearman([p.distance for p in self.points], [p.proxy for p in self.points]),
            "peak": peak.truth,
            "peak_kl": peak.kl,
            "end": end.truth,
            "end_kl": end.kl,
            "fall": float(fall.mean()),
            "fall_se": standard_error(fall),
        }


def cells_of(preset: str, pairs: Sequence[int], coefs: Sequence[float], seeds: int, **given: Any) -> list[Cell]:
    """Every run: sizes x coefficients x seeds (UsageError without a true score or a reward model to train)."""
    varied = {"reward_model.pairs": [str(n) for n in pairs], "kl.coef": [repr(c) for c in coefs]}
    cells = resolve(grid([preset], varied), seeds, seeded=SEEDED, **given)
    config, todo = cells[0].config, "use the preset overoptimise"
    for key in ("text", "preferences"):
        if getattr(config.corpus, key) != TRUE_SCORE_CORPUS:
            raise UsageError("the true score is known of the corpus `reviews` alone", f"corpus.{key}", todo)
    if len(filled_rewards(config)[1]) != 1 or sum(r.use in TRAINED_REWARD_NAMES for r in config.rewards.values()) != 1:
        raise UsageError("not one reward `trained` without a path: it is trained for every size and seed", preset, todo)
    if config.kl.controller != "fixed":
        raise UsageError("the KL coefficients are what is compared", "kl.controller", "use fixed")
    for cell in cells[: len(cells) : len(coefs) * seeds]:
        read_pairs(cell.config)  # there are so many
    return cells


def overoptimise(
    cells: Sequence[Cell], directory: Path, samples: int, emit: Emit, runner: Runner = run, *, jobs: int | None = None
) -> tuple[list[Curve], UserError | None]:
    """Run what is not done, then best-of-n of up to `samples` responses; returns the curves, and the first failure."""
    failure = compare(cells, directory, emit, runner, jobs=jobs)
    if failure is not None:
        return [], failure
    curves = curves_of(cells, directory.absolute(), samples, emit)
    write_json(directory / RESULT, {"curves": [as_json(curve) for curve in curves]})
    for curve in curves:
        emit({"event": "curve", **as_json(curve)})
    return curves, None


def as_json(curve: Curve) -> dict[str, Any]:
    """A curve as plain values, with its verdict."""
    points = {name: [vars(point) for point in getattr(curve, name)] for name in ("points", "best_of")}
    return {"pairs": curve.pairs, "accuracy": curve.accuracy, **points, **curve.verdict()}


def curves_of(cells: Sequence[Cell], directory: Path, samples: int, emit: Emit) -> list[Curve]:
    """The measures of the finished runs, gathered by size and coefficient."""
    found: dict[int, dict[float, Outcome]] = {}
    first: dict[int, dict[int, Cell]] = {}  # size -> seed -> a cell with its reward model
    for cell in cells:
        size = cell.config.reward_model.pairs
        assert size is not None, "varied"
        outcome = found.setdefault(size, {}).setdefault(cell.config.kl.coef, Outcome())
        outcome.measures[cell.seed] = measures_of(place(directory, cell))
        first.setdefault(size, {}).setdefault(cell.seed, cell)
    emit({"event": "best_of", "prompts": PROMPTS, "samples": samples})
    responses = {  # all runs have one reference
        seed: reference_responses(place(directory, cell), cell.config, samples) for seed, cell in by_seed(cells).items()
    }
    curves = []
    for size, by_coef in found.items():
        points = [point_of(coef, outcome) for coef, outcome in by_coef.items()]
        own = list(first[size].values())
        accuracy = sum(accuracy_of(cell) for cell in own) / len(own)
        best = best_of_n([(cell, place(directory, cell), responses[cell.seed]) for cell in own], samples)
        curves.append(Curve(size, accuracy, sorted(points, key=lambda p: p.kl), best))
    return curves


def by_seed(cells: Sequence[Cell]) -> dict[int, Cell]:
    """One cell of each seed."""
    return {cell.seed: cell for cell in reversed(cells)}


def point_of(coef: float, outcome: Outcome) -> Point:
    """Means over the seeds of the runs at one coefficient."""
    rows = list(outcome.measures.values())
    kl, proxy, truth = (
        torch.tensor([row[name] for row in rows], dtype=torch.float64)
        for name in ("kl_nats_per_sequence", "score_mean", "true_score_mean")
    )
    return point(coef, kl, proxy, truth)


def point(setting: float, kl: Tensor, proxy: Tensor, truth: Tensor) -> Point:
    """Values by seed (k,) as a point."""
    spent = float(kl.mean())
    proxies, truths = ((float(x.mean()), standard_error(x)) for x in (proxy, truth))
    return Point(setting, spent, math.sqrt(max(spent, 0.0)), *proxies, *truths, truth.tolist())


def standard_error(values: Tensor) -> float:
    """Of the mean of k values; 0 for one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation (ties by average rank); 0 for fewer than two values, or where all are the same."""

    def ranks(values: Sequence[float]) -> Tensor:
        found = [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]
        return torch.tensor(found, dtype=torch.float64)

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    spread = float(a.square().sum() * b.square().sum()) ** 0.5
    return float((a * b).sum()) / spread if spread else 0.0


# ---- best of n ---------------------------------------------------------------------------------------------


def accuracy_of(cell: Cell) -> float:
    """Held-out accuracy of the reward model that a finished run was rewarded by."""
    return float(read_json(reward_model_place(cell.config) / REPORT)["report"]["accuracy"])


def reference_responses(run_directory: Path, config: Config, samples: int) -> list[Rollout]:
    """`samples` responses of a finished run's reference to each of the first PROMPTS held-out prompts, by its seed."""
    device = set_up(config.run)
    saved = open_run(run_directory, config, device)
    chosen = heldout_prompts(config, saved.tokenizer).heldout[:PROMPTS]
    prompts = batch(chosen, saved.tokenizer, device, samples)
    return [
        generate(
            saved.reference.policy, part, saved.tokenizer, max_new_tokens=config.sampler.max_new_tokens,
            generator=generator(config.run.seed, "best-of", index),
        )
        for index, part in enumerate(prompts.parts(4 * ROWS))
    ]  # fmt: skip


def proxies(cell: Cell, run_directory: Path, rollouts: Sequence[Rollout]) -> Tensor:
    """What a finished run's rewards give these responses, (n,)."""
    device = set_up(cell.config.run)
    config = cell.config
    saved = open_run(run_directory, config, device)
    rewards = build_rewards(filled_rewards(config)[0], cell.registry, device)
    own = heldout_prompts(config, saved.tokenizer).train if rewards.normalized else []
    run_of_cell = RunContext(config, cell.registry, device, run_directory, lambda _: None)
    fit_rewards(run_of_cell, rewards, saved.reference, own, saved.tokenizer)
    totals = [total for r in rollouts for total in call_rewards(rewards, r, 0, config, saved.tokenizer).total]
    return torch.tensor(totals, dtype=torch.float64)  # a reward model scores everything: there is no None


def best_of_n(runs: Sequence[tuple[Cell, Path, Sequence[Rollout]]], samples: int) -> list[Point]:
    """A point for n = 1, 2, 4, ... up to `samples`: each run's reward model chooses among responses of its seed."""
    truth = [
        torch.tensor(true_scores([text for r in rollouts for text in r.completions]), dtype=torch.float64)
        for _, _, rollouts in runs
    ]
    chosen = [proxies(*one) for one in runs]
    points, n = [], 1
    while n <= samples:
        weights = chances_of_best(samples, n)
        pairs = zip(chosen, truth, strict=True)
        found = [expected_best(p.view(-1, samples), t.view(-1, samples), weights) for p, t in pairs]
        proxy, true = (torch.tensor(values, dtype=torch.float64) for values in zip(*found, strict=True))
        spent = torch.full_like(proxy, best_of_n_kl(n))
        points.append(point(n, spent, proxy, true))
        n *= 2
    return points


def expected_best(proxy: Tensor, truth: Tensor, weights: Tensor) -> tuple[float, float]:
    """Mean over prompts of the proxy and the true score of the response that the proxy likes best: proxy and truth
    (prompts, samples), weights (samples,) those of `chances_of_best`. No response is wasted, so it is unbiased."""
    order = proxy.argsort(dim=1, stable=True)
    return tuple(float((x.gather(1, order) * weights).sum(dim=1).mean()) for x in (proxy, truth))  # type: ignore[return-value]
