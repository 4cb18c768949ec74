"""An observer: every metric to Weights & Biases, offline unless WANDB_MODE says otherwise.

    pip install wandb
    minirlhf run --plugin plugins/wandb_log.py --set 'run.observers=["wandb_log"]'
    wandb sync RUN/wandb/offline-*                # sends what an offline run wrote; or run it with WANDB_MODE=online

A resumed run goes on under its id, which is in RUN/wandb_id. The x axis is `step`, not wandb's own count, which cannot
go back when a resumed run repeats some steps.
"""

import os
import uuid

from minirlhf import hookimpl


class WandbLog:
    """Pass start, step and finish on to wandb.init, log and finish."""

    def __init__(self):
        try:
            import wandb
        except ImportError:  # raised here, before anything is trained: later a failing observer is only dropped
            raise ImportError("wandb is missing: pip install wandb") from None
        self.wandb = wandb

    def start(self, config, run_dir):
        file = run_dir / "wandb_id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex, encoding="utf-8")
        self.run = self.wandb.init(
            project="minirlhf",
            name=run_dir.name,
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            dir=run_dir,
            config=config.model_dump(mode="json"),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self.wandb.Settings(console="off", silent=True),  # wandb neither records nor prints console output
        )
        self.run.define_metric("*", step_metric="step")

    def step(self, step, experience, metrics):
        self.run.log({"step": step, **metrics})

    def finish(self, summary):
        self.run.summary.update({"evaluation": summary})
        self.run.finish()


@hookimpl
def register_observers():
    return {"wandb_log": WandbLog}
