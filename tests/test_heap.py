"""glibc keeps freed blocks: counted in pages that the system has to hand out again."""

import json
import subprocess
import sys

import pytest

from minirlhf import heap

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not heap.keep_memory(), reason="needs Linux with glibc"
)

# Pages that ten rounds take, in each of which 16 tensors of 4 MB are made and freed. glibc raises its threshold by
# itself when the first of them are freed, and whether it then gives pages back depends on what lies at the end of its
# heap. A threshold that is set stays where it is, here at 1 MiB, so that every block is the system's.
CODE = """
import ctypes, json, resource, sys, torch
from minirlhf.heap import MMAP_THRESHOLD, keep_memory
assert ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)
torch.set_num_threads(1)
if sys.argv[1] == "kept": assert keep_memory()
def rounds(n):
    for _ in range(n):
        blocks = [torch.ones(1 << 20) for _ in range(16)]
        del blocks
rounds(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


def test_blocks_that_are_needed_again_are_kept():
    """A round writes 16 x 1,024 pages. Without the setting all of them are new ones each time."""
    assert pages("kept") < 1024
    assert pages("plain") >= 10 * 16 * 1024


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", None)  # calling it would raise
    assert not heap.keep_memory()


def test_another_c_library_has_no_such_setting(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert not heap.keep_memory()
