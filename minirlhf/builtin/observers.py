"""Built-in observers: `tensorboard`, every metric as a curve in RUN/tensorboard.

metrics.jsonl has the same numbers; this is for those who look at them in TensorBoard. Not here: trackers that send
numbers elsewhere, which are plugins (plugins/trackio_log.py, plugins/wandb_log.py).
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

    A resumed run goes on in the same folder, and hides the points of the interrupted one from its first step on. Raises
    UsageError if tensorboardX is missing.
    """

    def __init__(self) -> None:
        # Here, before anything is trained: an observer that fails during a run is only dropped, with a warning.
        if importlib.util.find_spec("tensorboardX") is None:
            raise UsageError("the observer tensorboard needs tensorboardX", todo="pip install 'minirlhf[tensorboard]'")

    def start(self, config: Any, run_dir: Path) -> None:
        """Remember the folder. The first step opens the file, since only it tells from which step on a run goes on."""
        self.folder, self.last = run_dir / "tensorboard", config.ppo.iterations
        self.writer: Any = None

    def step(self, step: int, experience: Any, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step; they are on disk within a second, or when the process ends."""
        if self.writer is None:
            self._open(f".{step:08d}", step if self.folder.exists() else None)
        self._write(step, metrics.items())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the numbers of evaluation.json as evaluation/NAME at the last step, and close the file."""
        if self.writer is None:  # a resumed run that had no step left, only the evaluation
            self._open(".evaluation", None)
        self._write(self.last, named_scalars("evaluation", summary))
        self.writer.close()

    def _open(self, suffix: str, purge_step: int | None) -> None:
        """Open a new event file beside those of interrupted runs, whose points from `purge_step` on are hidden."""
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=purge_step, flush_secs=1, filename_suffix=suffix)
        weakref.finalize(self, self.writer.close)  # an interrupted run never calls `finish`

    def _write(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        for name, value in scalars:
            self.writer.add_scalar(name, value, step)


def named_scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield every number inside nested dicts and lists under its path, such as evaluation/policy/score_mean."""
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
