"""A file or directory is complete or absent, and a manifest notices every change."""

import errno
import json
import os
import shutil
import stat

import pytest

from minirlhf.errors import CheckpointError, InputError
from minirlhf.store import files
from minirlhf.store.files import (
    MANIFEST,
    checked_number,
    complete_directory,
    discard,
    read_json,
    verify,
    write_json,
    write_text,
)


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


# ---- odd file systems ------------------------------------------------------------------------------------


def no_rename(monkeypatch, number):
    """os.rename as overlayfs has it for a directory of a lower layer, or an object store for any; of files it works."""
    sound = os.rename

    def rename(source, target, **options):
        if os.path.isdir(source):
            raise OSError(number, os.strerror(number), str(source))
        return sound(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_directories_cannot_be_renamed_they_are_copied_manifest_last(tmp_path, monkeypatch, number):
    no_rename(monkeypatch, number)
    copied, sound = [], shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: copied.append(b.name) or sound(a, b))
    for text in ("1", "2"):  # the second one replaces the first
        with complete_directory(tmp_path / "it") as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a").write_text(text)
            (temporary / "z").write_text(text)
    verify(tmp_path / "it")
    assert (tmp_path / "it" / "sub" / "a").read_text() == "2"
    assert list(tmp_path.iterdir()) == [tmp_path / "it"]
    assert copied[2] == copied[5] == MANIFEST


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    no_rename(monkeypatch, errno.EXDEV)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        make(tmp_path / "it", a="1")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_renamed_away_is_no_whole_one_while_it_is_removed(tmp_path, monkeypatch):
    path = make(tmp_path / "it", a="1")
    no_rename(monkeypatch, errno.EXDEV)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before
    discard(path)
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify(path)


def test_a_directory_that_cannot_be_flushed_is_made_all_the_same_and_a_file_that_cannot_is_not(tmp_path, monkeypatch):
    sound = os.fsync

    def fsync(handle, *, files=False):
        if files or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sound(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    verify(make(tmp_path / "it", a="1"))
    monkeypatch.setattr(os, "fsync", lambda handle: fsync(handle, files=True))
    files._sync(tmp_path / "it")
    with pytest.raises(OSError, match="Invalid argument"):
        files._sync(tmp_path / "it" / "a")


# ---- JSON that somebody edited ----------------------------------------------------------------------------


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": "\xe2\x80\xa8"}\r\n')
    assert read_json(tmp_path / "a.json") == {"x": "\u2028"}


EDITED = {
    "no number": (b'{"x": NaN}', "NaN is not JSON"),
    "infinite": (b'{"x": 1e400}', "is not finite"),
    "too large for a float": (b'{"x": 1' + b"0" * 400 + b"}", "is not finite"),
    "twice": (b'{"x": 1, "x": 2}', "'x' is given twice"),
    "deep": (b"[" * 100_000, "nested too deep"),
    "latin-1": (b'{"x": "caf\xe9"}', "can't decode byte 0xe9"),
    "torn": (b'{\n  "x": 1,\n  "y', "a.json:3"),
    "a list": (b"[1]", "not a JSON object"),
    "empty": (b"", "not readable as JSON"),
}


@pytest.mark.parametrize("damage", EDITED)
def test_damaged_json_is_one_line(tmp_path, damage):
    content, said = EDITED[damage]
    (tmp_path / "a.json").write_bytes(content)
    for refusal in (InputError, CheckpointError):
        with pytest.raises(refusal) as error:
            read_json(tmp_path / "a.json", refusal)
        assert said in str(error.value)
        assert str(error.value).count(str(tmp_path / "a.json")) == 1


def test_a_directory_and_a_pipe_are_no_json(tmp_path):
    (tmp_path / "a.json").mkdir()
    os.mkfifo(tmp_path / "b.json")
    for name in ("a.json", "b.json", "c.json"):
        with pytest.raises(InputError, match="not readable as JSON"):
            read_json(tmp_path / name)


@pytest.mark.parametrize("value", ["1", True, None, [], "inf"])
def test_a_number_is_a_number(value):
    assert checked_number(2) == 2.0
    with pytest.raises(ValueError, match="is no number"):
        checked_number(value)


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
