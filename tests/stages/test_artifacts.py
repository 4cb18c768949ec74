"""Artifacts under run.bases: found without a lock, made under one, and a place that cannot be written."""

import errno
import os

import pytest

from minirlhf.errors import DiskError
from minirlhf.stages.artifacts import find_or_make
from minirlhf.store.files import complete_directory, write_json

KEY = {"format": 1}


def make(directory):
    with complete_directory(directory) as temporary:
        write_json(temporary / "base.json", {"parameters": 3})


def prepare(root, making=make):
    """(its directory, the events)"""
    events = []
    return find_or_make(root, "", KEY, making, events.append, "base"), events


def read_only(monkeypatch, number=errno.EROFS):
    """Every call that would write is refused, as on a file system that is mounted read-only."""

    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    sound = os.open
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(os, "open", lambda p, f, *a, **k: refuse(p) if f & writes else sound(p, f, *a, **k))
    for name in ("mkdir", "rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)


def test_what_is_there_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    made, _ = prepare(tmp_path)
    read_only(monkeypatch)
    found, events = prepare(tmp_path, None)
    assert found == made
    assert [(e["event"], e["reused"], e["parameters"]) for e in events] == [("stage", True, 3)]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("root", ["there", "not there"])
def test_what_is_not_there_and_cannot_be_made_names_the_key(tmp_path, monkeypatch, number, root):
    (tmp_path / "there").mkdir()
    read_only(monkeypatch, number)
    with pytest.raises(DiskError, match=r"cannot write .*run\.bases=DIR") as error:
        prepare(tmp_path / root)
    assert str(tmp_path / root) in str(error.value)


def test_a_place_that_is_a_file_names_the_key(tmp_path):
    (tmp_path / "bases").write_text("")
    with pytest.raises(DiskError, match=r"run\.bases=DIR"):
        prepare(tmp_path / "bases")


def test_a_damaged_one_is_made_again_with_one_warning(tmp_path):
    made, _ = prepare(tmp_path)
    (made / "base.json").write_text("{}")
    found, events = prepare(tmp_path)
    assert found == made
    assert [e["event"] for e in events] == ["warning"]
    assert "base is made again" in events[0]["message"]
    assert prepare(tmp_path, None)[1][0]["parameters"] == 3


def test_the_reader_of_the_output_that_goes_away_is_no_fault_of_the_place(tmp_path):
    def gone(_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        prepare(tmp_path, gone)
