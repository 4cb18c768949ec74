"""What the panel and the token log cost: their seconds within the PPO part of a default run on a pseudo-terminal.

    python tests/benchmarks/watching.py [-- more arguments of `minirlhf run`]

Both are timed where they work, in the run that they belong to: runs of one seed differ by more than they take, on a
machine that does anything else. Needs pexpect (extra `test`).
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import pexpect


def main(arguments):
    """One run on a pty of 120 columns, and its shares."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [str(Path(__file__).resolve()), "--inside", str(out / "seconds.json"), "--out", str(out / "run")]
        environment = {**os.environ, "TERM": "xterm-256color"}
        child = pexpect.spawn(
            sys.executable, [*command, *arguments], dimensions=(40, 120), timeout=None, env=environment
        )
        child.expect(pexpect.EOF)
        child.close()
        spent = json.loads((out / "seconds.json").read_text())
        ppo = json.loads((out / "run" / "evaluation.json").read_text())["seconds"]["ppo"]
    for name, seconds in spent.items():
        print(f"{name:<10} {seconds:.2f} s of {ppo:.1f} s: {seconds / ppo:.1%}")


def inside(file, arguments):
    """The run itself, with both of them timed while PPO goes on."""
    from rich.live import Live

    from minirlhf.cli.main import group
    from minirlhf.pipeline import drive, pipeline

    spent = {"panel": 0.0, "token log": 0.0}

    def timed(function, name):
        def call(*given, **named):
            started = perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[name] += perf_counter() - started

        return call

    Live.refresh, drive.log_tokens = timed(Live.refresh, "panel"), timed(drive.log_tokens, "token log")
    ppo = pipeline.run_ppo

    def only_ppo(*given, **named):
        before = dict(spent)
        ppo(*given, **named)
        Path(file).write_text(json.dumps({name: spent[name] - before[name] for name in spent}))

    pipeline.run_ppo = only_ppo
    group.main(args=["run", "--ui", "live", *arguments], standalone_mode=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    else:
        main([argument for argument in sys.argv[1:] if argument != "--"])
