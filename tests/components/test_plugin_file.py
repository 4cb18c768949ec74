"""Functions of a plugin file in another process."""

import os
import pickle
import subprocess
import sys

import pytest

from minirlhf.components.registry import Registry
from minirlhf.errors import PluginError


def test_another_process_finds_a_function_by_its_name(tmp_path):
    """As the workers of `spawn` do, which get it by pickle."""
    file = tmp_path / "a-pool.of it.py"
    file.write_text("def double(x):\n    return 2 * x\n\ndef reward(completions): ...\n")
    first, again = (Registry().find("reward", f"{file}:reward").fn.__globals__["double"] for _ in range(2))
    assert pickle.loads(pickle.dumps(first)) is first is not again
    code = f"import pickle; print(pickle.loads({pickle.dumps(first)!r})(21))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("42\n", "")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # no bytecode is left behind


def test_a_name_that_is_too_long_is_not_found(tmp_path):
    with pytest.raises(PluginError, match="is not found"):
        Registry().find("reward", f"{tmp_path / ('x' * 300)}.py:reward")
