"""Over-optimisation curves: proxy and true score against KL, for reward models trained on several amounts of data.

The experiment of Gao, Schulman and Hilton (2210.10760), scaled down. A hidden true score judges the comparisons, with
noise. A reward model, the proxy, is trained on N of them. PPO runs against it once per KL coefficient (separate runs,
not points of one long run), and best-of-n on the same reward model is measured beside it. Every seed draws its own N
comparisons (all of them, if N is all there are), trains its own reward model and samples its own responses.

    OUT/overoptimise.json    and the files of `compare`

Not here: the runs (compare.py), the picture (report/pictures.py), printing (cli/overoptimise.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlhf.config.schema import Config
from minirlhf.errors import InputError, UsageError, UserError
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
from minirlhf.stages.evaluate import ROWS
from minirlhf.stages.intervals import t_interval
from minirlhf.stages.objective import best_of_n_kl, chances_of_best
from minirlhf.stages.preferences import FILE as REPORT
from minirlhf.stages.preferences import read_pairs, reward_model_directory
from minirlhf.stages.true_score import TRUE_SCORE_CORPUS, true_scores
from minirlhf.store.files import checked_number, read_json, write_json
from minirlhf.streams import generator
from minirlhf.studies.cell_runs import Runner
from minirlhf.studies.compare import compare
from minirlhf.studies.grid import Cell, cell_directory, grid, resolve_cells
from minirlhf.studies.shared import shared_parts
from minirlhf.studies.summary import Outcome, measures_of

RESULT = "overoptimise.json"
PROMPTS = 64  # held-out prompts of best-of-n
SEEDED = ("reward_model.seed",)  # keys that follow the seed of a run


@dataclass(frozen=True)
class Point:
    """One point of a curve: means over the seeds at one KL coefficient, or at one n of best-of-n.

    setting: the coefficient or n; kl: nats per sequence; distance: sqrt(kl); proxy: the reward model's score, in
    standard deviations of the reference's; truth: the true score; *_ci95: 95 % intervals of the means (Student's t over
    the seeds), None for one seed; by_seed: the true scores whose mean is `truth`.
    """

    setting: float
    kl: float
    distance: float
    proxy: float
    proxy_ci95: list[float] | None
    truth: float
    truth_ci95: list[float] | None
    by_seed: list[float]


@dataclass(frozen=True)
class Curve:
    """Curve of one amount of data: PPO points by rising KL, best-of-n points by rising n.

    pairs: comparisons that each reward model learned from; accuracy: mean held-out accuracy of these models.
    """

    pairs: int
    accuracy: float
    points: list[Point]
    best_of: list[Point]

    def verdict(self) -> dict[str, Any]:
        """Summary of the PPO points: rank correlation, peak, end, and the fall between them.

        spearman: rank correlation of proxy and sqrt(KL); peak, end: mean true score at its maximum and at the largest
        KL; fall: mean over the seeds of the true score lost from the peak to the end; fall_ci95: its 95 % interval.

        The highest of several means is biased upwards by its own noise. So each seed falls from the point at which the
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
            "fall_ci95": t_interval(fall),
        }


def cells_of(preset: str, pairs: Sequence[int], coefs: Sequence[float], seeds: int, **given: Any) -> list[Cell]:
    """Cells of the experiment: sizes x coefficients x seeds.

    UsageError unless the corpus has a true score, exactly one reward is a reward model to be trained, the KL
    coefficient is fixed, and there are enough comparisons.
    """
    varied = {"reward_model.pairs": [str(n) for n in pairs], "kl.coef": [repr(c) for c in coefs]}
    cells = resolve_cells(grid([preset], varied), seeds, seeded=SEEDED, **given)
    config, todo = cells[0].config, "use the preset overoptimise"
    for key in ("text", "preferences"):
        if getattr(config.corpus, key) != TRUE_SCORE_CORPUS:
            raise UsageError("the true score is known of the corpus `reviews` alone", f"corpus.{key}", todo)
    if len(filled_rewards(config)[1]) != 1 or sum(r.use in TRAINED_REWARD_NAMES for r in config.rewards.values()) != 1:
        raise UsageError("not one reward `trained` without a path: it is trained for every size and seed", preset, todo)
    if config.kl.controller != "fixed":
        raise UsageError("the KL coefficients are what is compared", "kl.controller", "use fixed")
    for cell in cells[:: len(coefs) * seeds]:  # the first cell of each size
        read_pairs(cell.config)  # UsageError if there are fewer
    return cells


def overoptimise(
    cells: Sequence[Cell], directory: Path, samples: int, emit: Emit, runner: Runner = run, *, jobs: int | None = None
) -> tuple[list[Curve], UserError | None]:
    """Run unfinished cells, measure best-of-n up to n = samples, write overoptimise.json.

    Returns the curves and None, or no curves and the first failure. Events: those of `compare`, best_of, curve.
    """
    failure = compare(cells, directory, emit, runner, jobs=jobs)
    if failure is not None:
        return [], failure
    curves = curves_of(cells, directory.absolute(), samples, emit)
    found = {"curves": [as_json(curve) for curve in curves], "shared": shared_parts(cells)}
    write_json(directory / RESULT, found)
    for curve in curves:
        emit({"event": "curve", **as_json(curve)})
    return curves, None


def as_json(curve: Curve) -> dict[str, Any]:
    """Curve with its verdict, ready for JSON."""
    points = {name: [vars(point) for point in getattr(curve, name)] for name in ("points", "best_of")}
    return {"pairs": curve.pairs, "accuracy": curve.accuracy, **points, **curve.verdict()}


def curves_of(cells: Sequence[Cell], directory: Path, samples: int, emit: Emit) -> list[Curve]:
    """Curves of finished runs, one a size in the order of the cells. Emits best_of."""
    outcomes: dict[int, dict[float, Outcome]] = {}  # size -> coefficient -> measures by seed
    one_cell: dict[int, dict[int, Cell]] = {}  # size -> seed -> one of the cells that share a reward model
    for cell in cells:
        size = cell.config.reward_model.pairs
        assert size is not None, "reward_model.pairs is a varied key"
        outcome = outcomes.setdefault(size, {}).setdefault(cell.config.kl.coef, Outcome())
        outcome.measures[cell.seed] = measures_of(cell_directory(directory, cell))
        one_cell.setdefault(size, {}).setdefault(cell.seed, cell)
    emit({"event": "best_of", "prompts": PROMPTS, "samples": samples})
    responses = {  # the reference is the same in all runs
        seed: reference_responses(cell_directory(directory, cell), cell.config, samples)
        for seed, cell in by_seed(cells).items()
    }
    curves = []
    for size, by_coef in outcomes.items():
        points = [point_of(coef, outcome) for coef, outcome in by_coef.items()]
        own = list(one_cell[size].values())
        accuracy = sum(accuracy_of(cell) for cell in own) / len(own)
        best = best_of_n_curve([(cell, cell_directory(directory, cell), responses[cell.seed]) for cell in own], samples)
        curves.append(Curve(size, accuracy, sorted(points, key=lambda p: p.kl), best))
    return curves


def by_seed(cells: Sequence[Cell]) -> dict[int, Cell]:
    """First cell of each seed."""
    return {cell.seed: cell for cell in reversed(cells)}


def point_of(coef: float, outcome: Outcome) -> Point:
    """Point of the runs at one KL coefficient."""
    rows = list(outcome.measures.values())
    kl, proxy, truth = (
        torch.tensor([row[name] for row in rows], dtype=torch.float64)
        for name in ("kl_nats_per_sequence", "score_mean", "true_score_mean")
    )
    return point(coef, kl, proxy, truth)


def point(setting: float, kl: Tensor, proxy: Tensor, truth: Tensor) -> Point:
    """Point of values by seed, each (seeds,)."""
    spent = float(kl.mean())
    proxies, truths = ((float(x.mean()), t_interval(x)) for x in (proxy, truth))
    return Point(setting, spent, math.sqrt(max(spent, 0.0)), *proxies, *truths, truth.tolist())


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman rank correlation, ties by average rank; 0 for fewer than two values or if all are equal."""

    def ranks(values: Sequence[float]) -> Tensor:
        found = [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]
        return torch.tensor(found, dtype=torch.float64)

    a, b = (r - r.mean() for r in (ranks(x), ranks(y)))
    spread = float(a.square().sum() * b.square().sum()) ** 0.5
    return float((a * b).sum()) / spread if spread else 0.0


# ---- best of n ---------------------------------------------------------------------------------------------


def accuracy_of(cell: Cell) -> float:
    """Held-out accuracy of the reward model of a finished run; InputError if its report does not say."""
    file = reward_model_directory(cell.config) / REPORT
    try:
        return checked_number(read_json(file)["report"]["accuracy"])
    except (KeyError, TypeError, ValueError):
        what, todo = "not the report of a reward model", "remove the reward model's directory, and run it again"
        raise InputError(what, str(file), todo) from None


def reference_responses(run_directory: Path, config: Config, samples: int) -> list[Rollout]:
    """Responses of a finished run's reference, drawn from its seed: `samples` to each of PROMPTS held-out prompts."""
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
    """Scores of the rollouts' responses by a finished run's rewards, (responses,)."""
    device = set_up(cell.config.run)
    config = cell.config
    saved = open_run(run_directory, config, device)
    rewards = build_rewards(filled_rewards(config)[0], cell.registry, device)
    own = heldout_prompts(config, saved.tokenizer).train if rewards.normalized else []
    run_of_cell = RunContext(config, cell.registry, device, run_directory, lambda _: None)
    fit_rewards(run_of_cell, rewards, saved.reference, own, saved.tokenizer)
    totals = [total for r in rollouts for total in call_rewards(rewards, r, 0, config, saved.tokenizer).total]
    return torch.tensor(totals, dtype=torch.float64)  # a reward model scores every response, so none is None


def best_of_n_curve(runs: Sequence[tuple[Cell, Path, Sequence[Rollout]]], samples: int) -> list[Point]:
    """Points of best-of-n for n = 1, 2, 4, ... up to `samples`, by the reward model of each run, one run a seed."""
    truth = [
        torch.tensor(true_scores([text for r in rollouts for text in r.completions]), dtype=torch.float64)
        for _, _, rollouts in runs
    ]
    chosen = [proxies(*run_and_responses) for run_and_responses in runs]
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
    """Expected proxy and true score of best-of-n, mean over prompts: sum over ranks of weight x score, unbiased.

    proxy, truth: (prompts, samples); weights: (samples,), the chance that the response of each proxy rank is the best
    of n drawn ones (`chances_of_best`).
    """
    order = proxy.argsort(dim=1, stable=True)
    return tuple(float((x.gather(1, order) * weights).sum(dim=1).mean()) for x in (proxy, truth))  # type: ignore[return-value]
