"""Systems without SIGHUP or flock (Windows), as far as that can be simulated: the program can be imported and runs."""

import subprocess
import sys

ODD = """
import signal, sys
del signal.SIGHUP
sys.modules["fcntl"] = None  # its import fails
from minirlhf.cli.main import main
from minirlhf.signals import SIGNALS
from minirlhf.store import lock
assert lock.fcntl is None and SIGNALS == (signal.SIGINT, signal.SIGTERM)
main(["--help"])
"""


def test_without_sighup_and_fcntl_the_program_runs():
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout
