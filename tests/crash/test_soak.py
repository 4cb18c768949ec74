"""A long run in one process: memory, files and threads do not grow, checkpoints do not pile up.

A short one by default; ten thousand updates and more than a thousand checkpoints by `pytest -m soak -s`.
"""

import json
from statistics import median

import pytest

from tests.crash.child import run_to_its_end

WATCHER = """
import json, os, threading
from minirlhf import hookimpl

class Watcher:
    def start(self, config, run_dir):
        self.run_dir = run_dir
        os.fsync = os.fstat  # its checkpoints wait for no disk: nobody cuts the power
        self.file = (run_dir / "watched.jsonl").open("w")
    def finish(self, summary): pass
    def step(self, step, experience, metrics):
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        row = {
            "mb": pages * os.sysconf("SC_PAGESIZE") / 2**20, "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(), "updates": metrics["count/updates"],
            "seconds": metrics["time/rollout"] + metrics["time/score"] + metrics["time/learn"],
            "checkpoints": len(list((self.run_dir / "checkpoints").glob("*"))) if step > 1 else 0,
        }
        self.file.write(json.dumps(row) + "\\n")
        self.file.flush()

@hookimpl
def register_observers():
    return {"watcher": Watcher}
"""


@pytest.mark.parametrize("iterations", [30, pytest.param(1250, marks=pytest.mark.soak)])
def test_nothing_grows(iterations, tiny, tmp_path):
    """Eight updates and a checkpoint an iteration; what is measured follows a warm-up of a tenth."""
    (tmp_path / "watcher.py").write_text(WATCHER)
    sets = (
        f"ppo.iterations={iterations}", "ppo.epochs=2", "ppo.minibatch_size=2", "run.checkpoint_every=1",
        "run.keep_checkpoints=3", "run.samples=1", 'run.observers=["watcher"]', "ppo.lr=1e-5",
    )  # fmt: skip
    arguments = [*tiny, *(part for s in sets for part in ("--set", s)), "--plugin", tmp_path / "watcher.py"]
    (result, _) = run_to_its_end("run", *arguments, "--out", tmp_path / "run", patience=1200)
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "watched.jsonl").read_text().splitlines()]
    assert sum(row["updates"] for row in rows) == 8 * iterations
    tenth = iterations // 10
    warm, last = rows[tenth : 2 * tenth], rows[-tenth:]
    grown = median(row["mb"] for row in last) - median(row["mb"] for row in warm)
    slower = median(row["seconds"] for row in last) / median(row["seconds"] for row in warm)
    print(f"{8 * iterations} updates: {grown:+.1f} MB, {slower:.2f} x the seconds of an iteration")
    assert grown <= 10
    for name in ("files", "threads"):
        assert {row[name] for row in rows[tenth:]} == {rows[tenth][name]}
    assert max(row["checkpoints"] for row in rows) <= 4
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3
