"""Run all checks of a component: `check` yields findings, `assert_sound` raises for those that fail.

The checks of each kind are in reward.py, estimator.py and observer.py. Not here: bias and variance of an estimator,
which `minirlhf audit` measures.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from minirlhf.authoring.estimator import check_estimator
from minirlhf.authoring.finding import Finding
from minirlhf.authoring.observer import check_observer
from minirlhf.authoring.options import prepare
from minirlhf.authoring.reward import check_reward
from minirlhf.components.component import Built
from minirlhf.components.signature import read_component
from minirlhf.text.corpus import Prompt


def assert_sound(kind: str, function: Callable[..., Any], *, prompts: Sequence[Prompt] = (), **options: Any) -> None:
    """Raise AssertionError that lists every check which a component fails.

    kind: reward, kl, advantage, loss or observer. prompts: rows with the columns that a reward asks for. options: as
    the configuration would give them. Raises UsageError if a column or an option is missing that the component needs.
    """
    path = getattr(inspect.getmodule(function), "__file__", None) or "a test"
    component = read_component(kind, getattr(function, "__name__", "it"), "the plugin under test", path, function)
    failed = [f for f in check(prepare(component, options), prompts) if not f.holds]
    if failed:
        raise AssertionError("\n".join(f"{f.name}: {f.found}" + (f"; {f.todo}" if f.todo else "") for f in failed))


def check(built: Built, prompts: Sequence[Prompt] = ()) -> Iterator[Finding]:
    """Yield the findings of a component's kind, in order. If the first check (`contract`) fails, the rest is skipped.

    Raises UsageError as `assert_sound` does, before the first finding.
    """
    if built.component.kind == "reward":
        return check_reward(built, prompts)
    return check_observer(built) if built.component.kind == "observer" else check_estimator(built)
