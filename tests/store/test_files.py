"""A file or directory is complete or absent, and a manifest notices every change."""

import errno
import json
import os
import shutil

import pytest

from minirlhf.errors import CheckpointError
from minirlhf.store import files
from minirlhf.store.files import MANIFEST, complete_directory, verify, write_json, write_text


def make(path, **contents):
    with complete_directory(path) as temporary:
        for name, text in contents.items():
            (temporary / name).write_text(text)
    return path


# ---- all or nothing ---------------------------------------------------------------------------------------


def test_a_directory_appears_with_its_manifest_and_nothing_beside_it(tmp_path):
    path = make(tmp_path / "deep" / "it", a="1", b="22")
    assert {p.name for p in path.iterdir()} == {"a", "b", MANIFEST}
    listed = json.loads((path / MANIFEST).read_text())["files"]
    # SHA-256 of "1", as any tool gives it.
    assert listed["a"] == {"sha256": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b", "size": 1}
    assert listed["b"]["size"] == 2
    assert list(path.parent.iterdir()) == [path]
    verify(path)


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_while_it_is_filled_leaves_nothing_and_what_was_there_before(tmp_path, fault):
    path = tmp_path / "it"
    with pytest.raises(fault), complete_directory(path) as temporary:
        (temporary / "a").write_text("half")
        assert not path.exists()
        raise fault
    assert list(tmp_path.iterdir()) == []
    make(path, a="whole")
    with pytest.raises(fault), complete_directory(path) as temporary:
        (temporary / "a").write_text("half")
        raise fault
    assert (path / "a").read_text() == "whole"
    verify(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "rename", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_nothing(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), complete_directory(tmp_path / "it") as temporary:
        (temporary / "a").write_text("whole")
        monkeypatch.setattr(files.os, name, full)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_that_name_is_replaced_as_a_whole(tmp_path):
    path = make(tmp_path / "it", old="1", both="1")
    make(path, new="2", both="2")
    assert {p.name for p in path.iterdir()} == {"new", "both", MANIFEST}
    assert (path / "both").read_text() == "2"


def test_what_a_killed_process_of_the_same_number_left_is_no_part_of_it(tmp_path):
    left = tmp_path / f".tmp-it-{os.getpid()}"
    left.mkdir()
    (left / "junk").write_text("x")
    assert {p.name for p in make(tmp_path / "it", a="1").iterdir()} == {"a", MANIFEST}


def test_a_text_is_replaced_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(files.os, "fsync", full)
        write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "neu: \u00e4\u4e2d\n")
    assert path.read_bytes() == "neu: \u00e4\u4e2d\n".encode()


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


# ---- the manifest notices ---------------------------------------------------------------------------------


def flip(path):
    data = bytearray((path / "b").read_bytes())
    data[0] ^= 1
    (path / "b").write_bytes(data)


def link(path):
    shutil.copy(path / "b", path.parent / "elsewhere")
    (path / "b").unlink()
    (path / "b").symlink_to(path.parent / "elsewhere")


def manifest(value):
    def write(path):
        (path / MANIFEST).write_text(value if isinstance(value, str) else json.dumps(value))

    return write


def pipe(path, name):
    (path / name).unlink()
    os.mkfifo(path / name)


def pipe_that_the_manifest_lists(path):
    pipe(path, "b")
    listed = json.loads((path / MANIFEST).read_text())
    listed["files"]["b"]["size"] = 0
    (path / MANIFEST).write_text(json.dumps(listed))


DAMAGE = {
    "a flipped bit": (flip, "content differs"),
    "a longer file": (lambda p: (p / "b").write_text("222"), "content differs"),
    "an empty file": (lambda p: (p / "b").write_text(""), "content differs"),
    "a missing file": (lambda p: (p / "b").unlink(), "['b']"),
    "an extra file": (lambda p: (p / "c").write_text("3"), "['c']"),
    "an extra file further down": (lambda p: (p / "d").mkdir() or (p / "d" / "e").write_text("3"), "['d/e']"),
    "a link": (link, "content differs"),
    "a pipe": (lambda p: pipe(p, "b"), "content differs"),
    "a pipe that the manifest lists": (pipe_that_the_manifest_lists, "content differs"),
    "a directory instead of a file": (lambda p: (p / "b").unlink() or (p / "b").mkdir(), "['b']"),
    "two files swapped": (
        lambda p: [f.write_text(t) for f, t in ((p / "a", "22"), (p / "b", "1"))],
        "content differs",
    ),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "no readable manifest"),
    "a manifest that is a pipe": (lambda p: pipe(p, MANIFEST), "no readable manifest"),
    "a torn manifest": (manifest('{"files": {"a"'), "no readable manifest"),
    "an empty manifest": (manifest({}), "no readable manifest"),
    "a manifest of another kind": (manifest([1]), "no readable manifest"),
    "a manifest of numbers": (manifest({"files": {"a": 3, "b": 4}}), "no readable manifest"),
    "an infinite size": (manifest('{"files": {"a": {"sha256": "", "size": 1e999}}}'), "no readable manifest"),
    "a deep manifest": (manifest("[" * 100_000), "no readable manifest"),
    "bytes as a manifest": (lambda p: (p / MANIFEST).write_bytes(b"\xff"), "no readable manifest"),
    "a directory that is a link": (
        lambda p: (p / "b").unlink() or (p / "b").symlink_to(p.parent, target_is_directory=True),
        "content differs",
    ),
    "a link to a directory beside them": (lambda p: (p / "c").symlink_to("/etc"), "['c']"),
    "a manifest that is a link": (
        lambda p: (p / MANIFEST).rename(p.parent / "away") and (p / MANIFEST).symlink_to(p.parent / "away"),
        "no readable manifest",
    ),
    "an absolute path": (manifest({"files": {"/etc/passwd": {"sha256": "", "size": 1}}}), "differ from the manifest"),
    "a name with a NUL": (manifest({"files": {"a\0b": {"sha256": "", "size": 1}}}), "differ from the manifest"),
    "a name of two lines": (
        manifest({"files": {"a\nerror: b": {"sha256": "", "size": 1}}}),
        "differ from the manifest",
    ),
    "a manifest beyond all measure": (manifest(" " * (1 << 25)), "no readable manifest"),
    "a path out of it": (manifest({"files": {"../a": {"sha256": "", "size": 1}}}), "differ from the manifest"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_found(tmp_path, damage):
    path = make(tmp_path / "it", a="1", b="22")
    verify(path)
    damaging, said = DAMAGE[damage]
    damaging(path)
    with pytest.raises(CheckpointError) as error:
        verify(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 4


def test_a_directory_that_is_not_there_is_no_traceback(tmp_path):
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify(tmp_path / "nowhere")
