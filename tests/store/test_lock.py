"""One process at a time; the lock is the kernel's, so a second holder in this process is refused as any other."""

import errno
import os
import threading
from time import monotonic, sleep

import pytest

from minirlhf.errors import UsageError
from minirlhf.store import lock
from minirlhf.store.lock import locked


def failing(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_held_lock_is_refused_naming_its_owner_and_is_free_afterwards(tmp_path):
    path = tmp_path / "made" / ".lock"
    with locked(path, print):
        with pytest.raises(UsageError) as error, locked(path, print):
            pass
        text = str(error.value)
        assert f"(pid {os.getpid()} on {os.uname().nodename})" in text
        assert str(path.parent) in text
        assert error.value.exit_code == 2
    with locked(path, print):
        pass


def test_it_is_free_after_an_error_and_a_shorter_number_leaves_no_rest(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("pid 123456789 on a-machine-with-a-very-long-name-that-is-gone")
    with pytest.raises(RuntimeError), locked(path, print):
        raise RuntimeError
    with locked(path, print):
        assert path.read_text() == f"pid {os.getpid()} on {os.uname().nodename}"


def test_a_forked_child_holds_nothing(tmp_path):
    """A worker that outlives a killed run would keep its lock."""
    held, ready = os.pipe(), os.pipe()
    with locked(tmp_path / ".lock", print):
        child = os.fork()
        if child == 0:
            os.close(held[1])
            os.write(ready[1], b"1")
            os.read(held[0], 1)  # until the parent closes its end
            os._exit(0)
        os.read(ready[0], 1)
    try:
        with locked(tmp_path / ".lock", print):
            pass
    finally:
        os.close(held[1])
        assert os.waitpid(child, 0)[1] == 0
        for handle in (held[0], *ready):
            os.close(handle)


def test_who_waits_says_at_once_for_what_and_gets_it_when_it_is_free(tmp_path):
    path, order, events, said = tmp_path / ".lock", [], [], threading.Event()

    def heard(event):
        events.append(event)
        said.set()

    def second():
        with locked(path, heard, wait=True):
            order.append("second")

    with locked(path, print):
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(timeout=10)
        end = monotonic() + 0.1
        while monotonic() < end:
            sleep(0.01)
            assert order == []
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    (event,) = events
    assert event["event"] == "warning"
    for part in ("waiting for another process", f"(pid {os.getpid()} on ", str(path)):
        assert part in event["message"]


def test_who_need_not_wait_says_nothing(tmp_path):
    events = []
    with locked(tmp_path / ".lock", events.append, wait=True):
        assert events == []


def test_what_is_locked_can_be_a_file_beside_the_lock(tmp_path):
    of = tmp_path / "pairs.jsonl"
    with (
        locked(tmp_path / ".pairs.jsonl.lock", print),
        pytest.raises(UsageError, match=r"pairs\.jsonl; wait for it"),
        locked(tmp_path / ".pairs.jsonl.lock", print, of=of),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, None])
@pytest.mark.parametrize("wait", [False, True])
def test_where_there_are_no_locks_a_process_says_so_once_and_goes_on(tmp_path, monkeypatch, number, wait):
    monkeypatch.setattr(lock, "_warned", set())
    if number is None:  # Windows
        monkeypatch.setattr(lock, "fcntl", None)
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "pwrite")
        monkeypatch.delattr(os, "uname")
    else:
        monkeypatch.setattr(lock.fcntl, "flock", failing(number))
    events, path = [], tmp_path / ".lock"
    with locked(path, events.append, wait=wait), locked(path, events.append, wait=wait):
        assert path.read_text().startswith(f"pid {os.getpid()} on ")
    (event,) = events
    assert event["event"] == "warning"
    for part in ("files cannot be locked here", str(path), "start one at a time"):
        assert part in event["message"]


def test_another_error_of_the_lock_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / ".lock", print):
        pass
