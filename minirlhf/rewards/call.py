"""Calling the reward functions of a run on finished responses, and summing what they give with their weights.

    total_i = sum over labels of weight x scale(score_i); None (does not apply) leaves the sum, token rewards add up.
    scale(s) = clip((s - mean) / std): mean and std are the reference's where a reward is normalised, else 0 and 1.

The journey of a score: `RewardBatch` (what functions see, batch.py) -> `RewardModels.call` -> `ScoreTable` (lists) ->
`Scores` (tensors) -> `ShapedScores` and rewards a token (shape.py). TRL's signature (prompts, completions,
completion_ids, **kwargs) runs unchanged, sync or async. Not here: rules for the sum (shape.py), and the answer to a
reward that fails during a run (pipeline/rewards.py).
"""

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minirlhf.components.checks import LARGEST_SCORE, RowScore, check_scores, finite_number
from minirlhf.components.component import INPUTS, Built
from minirlhf.components.guard import isolated
from minirlhf.config.schema import Config
from minirlhf.errors import PluginError, nearest
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.shape import Scores
from minirlhf.signals import TimeUp, time_limit
from minirlhf.tensors import ROUNDING
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ScoreTable:
    """Scores of n responses, as lists.

    total: weighted sums, None where no reward applied. by_label: scores that each reward gave (token rewards summed),
    before scaling. token_rewards: the part of the total that belongs to single tokens (weighted, in units of std), one
    number a token of completion_ids, None if no reward gave such; the rest of the total goes to the last token. metrics
    and extras: what the functions logged, as reward/LABEL/NAME (mean of the logged numbers; n values).
    """

    total: list[float | None]
    by_label: dict[str, list[float | None]]
    token_rewards: list[list[float]] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)

    def tensors(self, rollout: Rollout) -> Scores:
        """The same as tensors on the rollout's device; the mean of each label is a metric (NaN without a score)."""
        device, (b, r) = rollout.mask.device, rollout.mask.shape
        token_rewards = torch.zeros(b, r)
        for row, numbers in enumerate(self.token_rewards or []):
            token_rewards[row, : len(numbers)] = torch.tensor(numbers)
        metrics = dict(self.metrics)
        for label, values in self.by_label.items():
            given = [v for v in values if v is not None]
            metrics[f"reward/{label}"] = sum(given) / len(given) if given else math.nan
        if self.token_rewards is not None:
            metrics["count/token_rewards"] = float(sum(any(numbers) for numbers in self.token_rewards))
        metrics["count/unscored"] = float(sum(v is None for v in self.total))
        return Scores(
            total=torch.tensor([v or 0.0 for v in self.total], device=device),
            valid=torch.tensor([v is not None for v in self.total], device=device),
            token_rewards=token_rewards.to(device),
            metrics=metrics,
        )


@dataclass(frozen=True)
class Scale:
    """Scaling of a reward's score before it is weighed: (score - mean) / std, then cut to +- clip.

    normalize: mean and std are still to be measured (`RewardModels.fit`).
    """

    normalize: bool = False
    clip: float | None = None
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, score: float) -> float:
        shaped = (score - self.mean) / self.std
        return shaped if self.clip is None else min(max(shaped, -self.clip), self.clip)

    def of_tokens(self, score: float) -> float:
        """Factor of the token rewards of a response with this score: 1 / std, less where the score is cut."""
        shaped = (score - self.mean) / self.std
        return (self(score) / shaped if shaped else 1.0) / self.std


class RewardModels:
    """Rewards of a run: models = [(label, weight, built)]; scales = {label: Scale}."""

    def __init__(self, models: Sequence[tuple[str, float, Built]], scales: Mapping[str, Scale] | None = None) -> None:
        self.models = [(label, weight, replace(built, label=label)) for label, weight, built in models]
        self.scales = {label: Scale() for label, _, _ in models} | dict(scales or {})

    @property
    def normalized(self) -> list[str]:
        """Labels of the rewards whose scores are to be normalised."""
        return [label for label, scale in self.scales.items() if scale.normalize]

    def fit(self, by_label: Mapping[str, Sequence[float | None]]) -> None:
        """Set mean and (unbiased) standard deviation of the normalised rewards from these scores of the reference.

        A reward whose scores are all the same is only centred: there is no scale to divide by.
        """
        for label in self.normalized:
            given = [score for score in by_label[label] if score is not None]
            mean = sum(given) / len(given) if given else 0.0
            std = math.sqrt(sum((s - mean) ** 2 for s in given) / (len(given) - 1)) if len(given) > 1 else 0.0
            std = std if std > ROUNDING * max((abs(score) for score in given), default=0.0) else 1.0
            self.scales[label] = replace(self.scales[label], mean=mean, std=std)

    def states(self) -> dict[str, Any]:
        """Copies of the states of the rewards that remember their calls (those with a state_dict), by label."""
        return {label: copy.deepcopy(b.tell("state_dict")) for label, _, b in self.models if b.stateful}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Give the rewards of these labels back what they remembered."""
        for label, _, built in self.models:
            if label in states:
                built.tell("load_state_dict", copy.deepcopy(states[label]))

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Context after which the rewards have forgotten what they were asked in it."""
        before = self.states()
        try:
            yield
        finally:
            self.restore(before)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise PluginError, with the nearest name, for a column that a function needs and a prompt file lacks."""
        for _, _, built in self.models:
            for name in built.component.columns:
                if name not in columns:
                    near = nearest(name, (*INPUTS["reward"], *columns))
                    found = f"the columns that all prompt files have ({', '.join(sorted(columns)) or 'none'})"
                    raise built.error(
                        f"takes an unknown input {name!r}{near}",
                        f"inputs are {', '.join(INPUTS['reward'])} and {found}",
                    )

    def call(self, batch: RewardBatch) -> ScoreTable:
        """Call every reward function once, async ones together, and add up.

        Raises PluginError (plugin, file, label, first bad index) for anything that a function does wrong.
        """
        calls = [_Call(built, part) for _, _, built in self.models for part in batch.parts(built)]
        _run(calls)
        given: dict[str, list[RowScore]] = {}
        for call in calls:
            given.setdefault(call.built.label, []).extend(call.scores())
        metrics, extras = _logged(calls)
        return replace(self._sum(given, batch.completion_ids), metrics=metrics, extras=extras)

    def _sum(self, given: Mapping[str, Sequence[RowScore]], completion_ids: list[list[int]]) -> ScoreTable:
        """Weighted sum over the labels, and the part of it that belongs to single tokens."""
        total: list[float | None] = [None] * len(completion_ids)
        by_label: dict[str, list[float | None]] = {}
        tokens = [[0.0] * len(ids) for ids in completion_ids]
        placed = False
        for label, weight, built in self.models:
            sums: list[float | None] = []
            for i, row in enumerate(given.get(label, [])):
                value = sum(row) if isinstance(row, list) else row
                sums.append(value)
                if value is not None:
                    weighted = _usable(built, i, weight, self.scales[label](value))
                    total[i] = (total[i] or 0.0) + weighted
                if isinstance(row, list):
                    placed, factor = True, self.scales[label].of_tokens(sum(row))
                    added = [_usable(built, i, weight, new * factor) for new in row]
                    tokens[i] = [old + new for old, new in zip(tokens[i], added, strict=True)]
            by_label[label] = sums
        return ScoreTable(total, by_label, tokens if placed else None)


class _Call:
    """One call of one reward function: its result and what it logged."""

    def __init__(self, built: Built, batch: RewardBatch) -> None:
        self.built, self.batch = built, batch
        self.result: Any = None
        self.metrics: list[tuple[str, float]] = []
        self.extras: list[tuple[str, list[Any]]] = []

    def start(self) -> None:
        """Call the function; an async one leaves an awaitable in `result`."""
        logs = {"log_metric": self.log_metric, "log_extra": self.log_extra}
        inputs = self.batch.inputs(self.built) | logs
        with torch.inference_mode() if self.built.is_module else nullcontext():
            self.result = self.built(inputs)

    async def finish(self) -> None:
        """Await the result of an async function."""
        try:
            with self.built.guarded():
                self.result = await self.result
        except PluginError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the loop is being ended: no fault of the function
                raise asyncio.CancelledError from None
            raise

    def scores(self) -> list[RowScore]:
        """The result, checked: a score, one number a token, or None for each response."""
        ids = self.batch.completion_ids
        return check_scores(self.built, self.result, len(ids), ids)

    def log_metric(self, name: str, value: Any) -> None:
        """Log a number under a name (TRL's function); the mean over the calls of a step is kept."""
        self.metrics.append((_text(name), finite_number(value)))

    def log_extra(self, column: str, values: Any) -> None:
        """Log one value a completion (TRL's function), shown beside the samples."""
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


def _usable(built: Built, index: int, weight: float, score: float) -> float:
    """Weight x score of one response or token; PluginError if it is too large for the arithmetic of the loop."""
    if not abs(weight * score) <= LARGEST_SCORE:
        what = f"gives a score at index {index} that is too large to learn from"
        limit = f"weight {weight:g} x {score:g}; at most {LARGEST_SCORE:g}"
        raise built.error(f"{what} ({limit})", f"return smaller scores, or lower rewards.{built.label}.weight")
    return weight * score


def _logged(calls: list[_Call]) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Means of the metrics and the extra columns, as reward/LABEL/NAME, so that no two rewards share a name."""
    numbers: dict[str, list[float]] = {}
    extras: dict[str, list[Any]] = {}
    for call in calls:
        prefix = f"reward/{call.built.label}"
        for name, number in call.metrics:
            numbers.setdefault(f"{prefix}/{name}", []).append(number)
        for name, values in call.extras:
            extras.setdefault(f"{prefix}/{name}", []).extend(values)
    return {name: sum(values) / len(values) for name, values in numbers.items()}, extras


def _text(name: Any) -> str:
    """The name, or TypeError if it is no string."""
    if not isinstance(name, str):
        raise TypeError(f"a name to log under must be a string, got {type(name).__name__}")
    return name


def call_rewards(models: RewardModels, rollout: Rollout, step: int, config: Config, tokenizer: Tokenizer) -> ScoreTable:
    """Call the rewards on a rollout within `run.reward_timeout_s` seconds (PluginError if they take longer).

    step: iterations done. tokenizer: the policy's; its hash tells a trained reward model whether the ids are its own.
    """
    limit, total = config.run.reward_timeout_s, config.ppo.iterations
    batch = RewardBatch(
        prompts=list(rollout.prompts),
        completions=list(rollout.completions),
        prompt_ids=rollout.prompt_id_lists,
        completion_ids=rollout.completion_id_lists,
        columns={name: list(values) for name, values in rollout.columns.items()},
        trainer_state=TrainerState(step, total, step / max(1, total), tokenizer.hash),
        rollout=rollout,
    )
    try:
        with time_limit(limit, f"longer than run.reward_timeout_s = {limit:g} s" if limit else ""):
            return models.call(batch)
    except TimeUp as fault:  # between two calls, or while several are awaited
        labels = ", ".join(label for label, _, _ in models.models)
        raise PluginError(f"rewards took {fault}", labels, "raise it, or make them faster") from None
