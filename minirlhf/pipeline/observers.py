"""Observer plugins during a run. Not here: the hook that collects them (hookspecs.py)."""

from pathlib import Path
from typing import Any

from minirlhf.components.component import Built
from minirlhf.config.schema import Config
from minirlhf.errors import PluginError
from minirlhf.events import Emit
from minirlhf.rl.experience import Experience
from minirlhf.rl.metrics import Metrics


class Observers:
    """Plugins that watch a run. One that fails is dropped with one warning: watching must not end what is watched."""

    def __init__(self, observers: list[Built], emit: Emit) -> None:
        self._alive, self._emit = list(observers), emit

    def start(self, config: Config, directory: Path) -> None:
        """Call start(config, run_dir) of each, before the first iteration."""
        self._each("start", config, directory)

    def step(self, step: int, experience: Experience, metrics: Metrics) -> None:
        """Call step(step, experience, metrics) of each, after an iteration, with a copy of the metrics."""
        self._each("step", step, experience, dict(metrics))

    def finish(self, summary: dict[str, Any]) -> None:
        """Call finish(summary) of each, after the evaluation."""
        self._each("finish", dict(summary))

    def _each(self, method: str, *arguments: Any) -> None:
        for observer in list(self._alive):
            try:
                observer.tell(method, *arguments)
            except PluginError as fault:
                self._alive.remove(observer)
                self._emit({"event": "warning", "message": f"an observer is dropped: {fault}"})
