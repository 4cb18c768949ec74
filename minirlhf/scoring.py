"""Scores: what the chosen reward models gave to a batch of finished responses, summed with their weights.

    total_i = sum over labels of weight x shape(score_i); None (does not apply) leaves the sum, token rewards add up.
    shape(s) = clip((s - mean) / std): mean and std are the reference's where a reward is normalised, else 0 and 1.

A reward function gets copies of what it names (texts, ids, columns of the prompt file, the rollout's
tensors), so nothing that it does to them reaches the run. TRL's signature runs unchanged: (prompts,
completions, completion_ids, **kwargs), sync or async. Not here: what the rules do to the sum (shaping.py).
"""

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

from minirlhf.components import (
    INPUTS,
    Built,
    RowScore,
    check_scores,
    finite_number,
    isolated,
    nearest,
)
from minirlhf.errors import PluginError

MODULE_ROWS = 16  # an nn.Module gets so many responses at a time


@dataclass(frozen=True)
class TrainerState:
    """Where the run stands, in TRL's names: iteration (from 0) of how many, and their quotient; and the SHA-256 of the
    policy's tokenizer, by which a reward model knows whether the ids are its own."""

    global_step: int
    max_steps: int
    epoch: float
    tokenizer_hash: str = ""


@dataclass(frozen=True)
class Scores:
    """What a batch of n responses got.

    total: the weighted sums, None where no reward model applied. by_label: what each gave (token rewards
    summed), as it is. token_rewards: the part of the total that has a place (weighted, in units of std), one number a
    token of completion_ids, or None if nobody gave such; the rest of the total belongs to the last token. metrics
    and extras: what the functions logged, as reward/LABEL/NAME (the mean of the logged numbers; n values).
    """

    total: list[float | None]
    by_label: dict[str, list[float | None]]
    token_rewards: list[list[float]] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """What is done to a reward's score before it is weighed: (score - mean) / std, then cut to +- clip.

    normalize: mean and std are still to be measured (`RewardModels.fit`).
    """

    normalize: bool = False
    clip: float | None = None
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, score: float) -> float:
        shaped = (score - self.mean) / self.std
        return shaped if self.clip is None else min(max(shaped, -self.clip), self.clip)


class RewardModels:
    """The rewards of a run: models = (label, weight, built) each; shapes = label -> Shape, where a score is shaped."""

    def __init__(self, models: Sequence[tuple[str, float, Built]], shapes: Mapping[str, Shape] | None = None) -> None:
        self.models = [(label, weight, replace(built, label=label)) for label, weight, built in models]
        self.shapes = {label: Shape() for label, _, _ in models} | dict(shapes or {})

    @property
    def normalized(self) -> list[str]:
        """The labels whose scores are to be normalised."""
        return [label for label, shape in self.shapes.items() if shape.normalize]

    def fit(self, by_label: Mapping[str, Sequence[float | None]]) -> None:
        """Take mean and (unbiased) standard deviation of these scores for the rewards that are normalised; one whose
        scores are all the same is only centred."""
        for label in self.normalized:
            given = [score for score in by_label[label] if score is not None]
            mean = sum(given) / len(given) if given else 0.0
            std = math.sqrt(sum((s - mean) ** 2 for s in given) / (len(given) - 1)) if len(given) > 1 else 0.0
            std = std if std > 1e-6 * max(1.0, abs(mean)) else 1.0
            self.shapes[label] = replace(self.shapes[label], mean=mean, std=std)

    def check_columns(self, columns: Collection[str]) -> None:
        """Every column that a function needs is in the prompt file, or PluginError with what may be meant."""
        for _, _, built in self.models:
            for name in built.component.columns:
                if name not in columns:
                    near = nearest(name, (*INPUTS["reward"], *columns))
                    found = f"the columns of the prompt file ({', '.join(sorted(columns)) or 'none'})"
                    raise built.error(
                        f"takes an unknown input {name!r}{near}",
                        f"inputs are {', '.join(INPUTS['reward'])} and {found}",
                    )

    def score(
        self,
        *,
        prompts: list[str],
        completions: list[str],
        prompt_ids: list[list[int]],
        completion_ids: list[list[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: TrainerState,
        rollout: Any = None,
    ) -> Scores:
        """Call every reward model once, async ones together, and add up. rollout: an experience.Rollout.

        Raises PluginError (plugin, file, label, first bad index) for whatever a function does wrong.
        """
        batch = _Batch(prompts, completions, prompt_ids, completion_ids, columns, trainer_state, rollout)
        calls = [_Call(built, part) for _, _, built in self.models for part in batch.parts(built)]
        _run(calls)
        given: dict[str, list[RowScore]] = {}
        for call in calls:
            given.setdefault(call.built.label, []).extend(call.scores())
        metrics, extras = _logged(calls)
        return _added(self.models, self.shapes, given, completion_ids, metrics, extras)


@dataclass(frozen=True)
class _Batch:
    """n responses as reward functions see them; every read is a fresh copy, made only if it is asked for."""

    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    columns: Mapping[str, Sequence[Any]]
    trainer_state: TrainerState
    rollout: Any

    def inputs(self, built: Built) -> dict[str, Any]:
        """The inputs and columns that a reward names, copied."""
        make: dict[str, Callable[[], Any]] = {
            "prompts": lambda: list(self.prompts),
            "completions": lambda: list(self.completions),
            "prompt_ids": lambda: [list(ids) for ids in self.prompt_ids],
            "completion_ids": lambda: [list(ids) for ids in self.completion_ids],
            "trainer_state": lambda: self.trainer_state,
            "rollout": lambda: _copy_rollout(self.rollout),
        }
        columns = {name: copy.deepcopy(list(v)) for name, v in self.columns.items() if built.names(name)}
        return columns | {name: value() for name, value in make.items() if built.names(name)}

    def parts(self, built: Built) -> "list[_Batch]":
        """The whole, or pieces that fit an nn.Module."""
        n = len(self.completions)
        if not built.is_module or n <= MODULE_ROWS:
            return [self]
        return [self.rows(start, min(start + MODULE_ROWS, n)) for start in range(0, n, MODULE_ROWS)]

    def rows(self, start: int, stop: int) -> "_Batch":
        import torch

        part = slice(start, stop)
        return _Batch(
            self.prompts[part],
            self.completions[part],
            self.prompt_ids[part],
            self.completion_ids[part],
            {name: values[part] for name, values in self.columns.items()},
            self.trainer_state,
            None if self.rollout is None else self.rollout.rows(torch.arange(start, stop)),
        )


class _Call:
    """One call of one reward model, with what it returned and what it logged."""

    def __init__(self, built: Built, batch: _Batch) -> None:
        self.built, self.batch = built, batch
        self.result: Any = None
        self.metrics: list[tuple[str, float]] = []
        self.extras: list[tuple[str, list[Any]]] = []

    def start(self) -> None:
        """Call it; an async function leaves something to await in `result`."""
        logs = {"log_metric": self.log_metric, "log_extra": self.log_extra}
        inputs = self.batch.inputs(self.built) | logs
        with _inference_mode() if self.built.is_module else nullcontext():
            self.result = self.built(inputs)

    async def finish(self) -> None:
        try:
            with self.built.guarded():
                self.result = await self.result
        except PluginError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the loop is being ended: no fault of the function
                raise asyncio.CancelledError from None
            raise

    def scores(self) -> list[RowScore]:
        ids = self.batch.completion_ids
        return check_scores(self.built, self.result, len(ids), ids)

    def log_metric(self, name: str, value: Any) -> None:
        """TRL's: a number to log under a name; the mean over a step's calls is kept."""
        self.metrics.append((_text(name), finite_number(value)))

    def log_extra(self, column: str, values: Any) -> None:
        """TRL's: one value a completion, shown beside the samples."""
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
        expected = len(self.batch.completions)
        if len(listed) != expected:
            raise ValueError(f"expected {expected} values to log as {column!r}, got {len(listed)}")
        self.extras.append((_text(column), listed))


def _run(calls: list[_Call]) -> None:
    """Call all in order, then await together what is left to await. The first fault, in order, is raised."""
    try:
        for call in calls:
            call.start()
        waiting = [call for call in calls if inspect.isawaitable(call.result)]
        if waiting:
            with isolated():
                outcomes = _in_a_loop(_gather([call.finish() for call in waiting]))
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
    finally:
        for call in calls:  # a coroutine that is never awaited would warn when it is collected
            if inspect.iscoroutine(call.result):
                call.result.close()


async def _gather(tasks: list[Awaitable[None]]) -> list[BaseException | None]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def _in_a_loop(work: Coroutine[Any, Any, list[BaseException | None]]) -> list[BaseException | None]:
    """asyncio.run, also where a loop is running already (a notebook): there in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def _added(
    models: list[tuple[str, float, Built]],
    shapes: Mapping[str, Shape],
    given: dict[str, list[RowScore]],
    completion_ids: list[list[int]],
    metrics: dict[str, float],
    extras: dict[str, list[Any]],
) -> Scores:
    """The weighted sum over the labels, and the part of it that is placed token by token."""
    total: list[float | None] = [None] * len(completion_ids)
    by_label: dict[str, list[float | None]] = {}
    tokens = [[0.0] * len(ids) for ids in completion_ids]
    placed = False
    for label, weight, _ in models:
        sums: list[float | None] = []
        for i, row in enumerate(given.get(label, [])):
            value = sum(row) if isinstance(row, list) else row
            sums.append(value)
            if value is not None:
                total[i] = (total[i] or 0.0) + weight * shapes[label](value)
            if isinstance(row, list):
                placed, scale = True, weight / shapes[label].std
                tokens[i] = [old + scale * new for old, new in zip(tokens[i], row, strict=True)]
        by_label[label] = sums
    return Scores(total, by_label, tokens if placed else None, metrics, extras)


def _logged(calls: list[_Call]) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Means of the metrics and the extra columns, each as reward/LABEL/NAME: no two rewards share a name."""
    numbers: dict[str, list[float]] = {}
    extras: dict[str, list[Any]] = {}
    for call in calls:
        prefix = f"reward/{call.built.label}"
        for name, number in call.metrics:
            numbers.setdefault(f"{prefix}/{name}", []).append(number)
        for name, values in call.extras:
            extras.setdefault(f"{prefix}/{name}", []).extend(values)
    return {name: sum(values) / len(values) for name, values in numbers.items()}, extras


def _copy_rollout(rollout: Any) -> Any:
    """The same rollout with tensors of its own."""
    if rollout is None:
        return None
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    tensors = {name: value.detach().clone() for name, value in values.items() if hasattr(value, "detach")}
    return replace(rollout, **tensors, columns=copy.deepcopy(dict(rollout.columns)))


def _inference_mode() -> Any:
    import torch

    return torch.inference_mode()


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name to log under must be a string, got {type(name).__name__}")
    return name
