"""Built-in observers: `tensorboard`, every metric as a curve in RUN/tensorboard.

metrics.jsonl has the same numbers; this is for those who look at them in TensorBoard. Trackers that send numbers
elsewhere are plugins (plugins/trackio_log.py, plugins/wandb_log.py).
"""

import importlib.util
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minirlhf import hookimpl
from minirlhf.errors import UsageError


class tensorboard:
    """Every metric of every step, and at the end the numbers of the evaluation, as scalars in RUN/tensorboard.

    A run that goes on writes there too; what an earlier life had written from that step on is hidden. Raises UsageError
    where tensorboardX is missing, before anything is trained: in a run, an observer that fails is only dropped.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise UsageError("the observer tensorboard needs tensorboardX", todo="pip install 'minirlhf[tensorboard]'")

    def start(self, config: Any, run_dir: Path) -> None:
        """The first step decides from where on."""
        self.folder, self.last = run_dir / "tensorboard", config.ppo.iterations
        self.writer: Any = None

    def step(self, step: int, experience: Any, metrics: Mapping[str, float]) -> None:
        """On disk within a second, or when the process ends."""
        if self.writer is None:
            self._open(f".{step:08d}", step if self.folder.exists() else None)
        self._write(step, metrics.items())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The numbers of evaluation.json, as evaluation/NAME at the last step."""
        if self.writer is None:  # only the evaluation was left to do
            self._open(".evaluation", None)
        self._write(self.last, named_scalars("evaluation", summary))
        self.writer.close()

    def _open(self, suffix: str, purge_step: int | None) -> None:
        """A file of its own beside those of earlier lives, of which nothing is shown from `purge_step` on."""
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=purge_step, flush_secs=1, filename_suffix=suffix)
        weakref.finalize(self, self.writer.close)  # a run that is interrupted does not come to its end

    def _write(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        for name, value in scalars:
            self.writer.add_scalar(name, value, step)


def named_scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number inside dicts and lists, with its path: evaluation/policy/score_mean."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_scalars(f"{name}/{key}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            yield from named_scalars(f"{name}/{i}", item)
    elif isinstance(value, int | float):
        yield name, float(value)


@hookimpl
def register_observers() -> Mapping[str, type]:
    return {"tensorboard": tensorboard}
