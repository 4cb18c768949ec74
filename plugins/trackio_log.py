"""An observer: every metric to trackio, which keeps them on this machine and shows them in a browser.

    pip install trackio
    minirlhf run --plugin plugins/trackio_log.py --set 'run.observers=["trackio_log"]'
    trackio show --project minirlhf

trackio decides where the numbers are kept: TRACKIO_DIR names a folder, TRACKIO_SPACE_ID would send them elsewhere. A
resumed run goes on under its name, which is in RUN/trackio_name; steps that it repeats may be there twice.
"""

import uuid

from minirlhf import hookimpl
from minirlhf.builtin.observers import named_scalars


class TrackioLog:
    """Pass start, step and finish on to trackio.init, log and finish."""

    def __init__(self):
        try:
            import trackio
        except ImportError:  # raised here, before anything is trained: later a failing observer is only dropped
            raise ImportError("trackio is missing: pip install trackio") from None
        self.trackio = trackio

    def start(self, config, run_dir):
        file = run_dir / "trackio_name"
        if not file.exists():  # with random digits: two runs may have directories of the same name
            file.write_text(f"{run_dir.name}-{uuid.uuid4().hex[:8]}", encoding="utf-8")
        self.last = config.ppo.iterations
        self.run = self.trackio.init(
            project="minirlhf",
            name=file.read_text(encoding="utf-8"),
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def step(self, step, experience, metrics):
        self.run.log(metrics, step=step)

    def finish(self, summary):
        self.run.log(dict(named_scalars("evaluation", summary)), step=self.last)
        self.run.finish()


@hookimpl
def register_observers():
    return {"trackio_log": TrackioLog}
