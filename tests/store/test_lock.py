"""One process at a time; the lock is the kernel's, so a second holder in this process is refused as any other."""

import os
import threading
from time import monotonic, sleep

import pytest

from minirlhf.errors import UsageError
from minirlhf.store.lock import locked


def test_a_held_lock_is_refused_naming_its_owner_and_is_free_afterwards(tmp_path):
    path = tmp_path / "made" / ".lock"
    with locked(path):
        with pytest.raises(UsageError) as error, locked(path):
            pass
        text = str(error.value)
        assert f"(pid {os.getpid()} on {os.uname().nodename})" in text
        assert str(path.parent) in text
        assert error.value.exit_code == 2
    with locked(path):
        pass


def test_it_is_free_after_an_error_and_a_shorter_number_leaves_no_rest(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("pid 123456789 on a-machine-with-a-very-long-name-that-is-gone")
    with pytest.raises(RuntimeError), locked(path):
        raise RuntimeError
    with locked(path):
        assert path.read_text() == f"pid {os.getpid()} on {os.uname().nodename}"


def test_a_forked_child_holds_nothing(tmp_path):
    """A worker that outlives a killed run would keep its lock."""
    held, ready = os.pipe(), os.pipe()
    with locked(tmp_path / ".lock"):
        child = os.fork()
        if child == 0:
            os.close(held[1])
            os.write(ready[1], b"1")
            os.read(held[0], 1)  # until the parent closes its end
            os._exit(0)
        os.read(ready[0], 1)
    try:
        with locked(tmp_path / ".lock"):
            pass
    finally:
        os.close(held[1])
        assert os.waitpid(child, 0)[1] == 0
        for handle in (held[0], *ready):
            os.close(handle)


def test_who_waits_gets_it_when_it_is_free(tmp_path):
    path, order = tmp_path / ".lock", []

    def second():
        with locked(path, wait=True):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        end = monotonic() + 0.1
        while monotonic() < end:
            sleep(0.01)
            assert order == []
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
