"""Standard streams of a real process: closed, full, without a reader, of another encoding, written to by others."""

import os
import subprocess
import sys
import tomllib

import pytest

from minirlhf.cli.config import ascii_toml
from minirlhf.cli.main import COMMANDS
from minirlhf.cli.ui import progress
from tests.cli.calling import done, refused

NULL = os.stat(os.devnull).st_rdev


def process(*arguments, **streams):
    """A Python process: exit code, and what came out of the streams that are not given."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **streams}
    found = subprocess.run([sys.executable, *arguments], timeout=60, **pipes)
    return found.returncode, found.stdout, found.stderr


WRITERS = r"""
import os, subprocess, sys
from minirlhf.cli import stdio
stdio.open_streams()
stdio.claim_stdout()
print("{} \u8336 \udcff")
subprocess.run([sys.executable, "-c", "print('child')"])
os.write(1, b"raw\n")
print("old", file=sys.__stdout__, flush=True)
child = os.fork()
if child == 0:
    print("forked")
    sys.exit()
os.waitpid(child, 0)
sys.stderr.write("\u8336\n")
stdio.finish(embedded=False)
print("at exit")
"""


def test_stdout_has_the_results_alone_and_no_letter_is_too_strange():
    code, out, err = process("-c", WRITERS, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (code, out) == (0, b"{} \\u8336 \\udcff\n"), err
    assert err.split() == [b"child", b"raw", b"old", b"forked", b"\\u8336", b"at", b"exit"]


def test_a_print_between_events_goes_to_stderr(capsys):
    """Of a thread that a plugin left behind, for example."""
    with progress("auto", as_json=True) as emit:
        print("late")
        emit({"event": "x"})
    assert capsys.readouterr() == ('{"event": "x"}\n', "late\n")


EMBEDDED = """
import os, sys
from minirlhf.cli.main import main
try: main(["--version"])
except SystemExit: pass
print("after")
os.write(1, b"all\\n")
"""


def test_a_program_that_calls_a_command_gets_its_stdout_back():
    code, out, err = process("-u", "-c", EMBEDDED)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, [b"minirlhf,", b"after", b"all"]), err


def test_closed_streams_are_opened_where_they_were(tmp_path):
    """Else the next file that is opened would be stdout."""
    code = f"""
import os, sys
from minirlhf.cli import stdio
stdio.open_streams()
print(input.__name__), sys.stderr.write("x"), sys.stdin.read()
open({str(tmp_path / "found")!r}, "w").write(repr([os.fstat(n).st_rdev for n in range(3)]))
"""
    assert subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], timeout=60).returncode == 0
    assert (tmp_path / "found").read_text() == repr([NULL] * 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_6_and_an_error_that_cannot_be_printed_keeps_its_code():
    with open("/dev/full", "w") as full:
        assert process("-m", "minirlhf", "--help", stdout=full)[0] == 6
        assert process("-m", "minirlhf", "nope", stderr=full)[0] == 2


def test_help_without_a_reader_is_141():
    ours, theirs = os.pipe()
    os.close(ours)
    code, _, err = process("-m", "minirlhf", "--help", stdout=theirs)
    os.close(theirs)
    assert (code, err) == (141, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_ascii(command):
    """click, which prints it, takes an ASCII terminal for a UTF-8 one."""
    assert done(command, "--help").out.isascii()


def test_a_configuration_in_ascii_is_the_same_configuration():
    text = 'words = ["\u00e9", "\u8336", "\U0001f375", "a\\\\b"]\n'
    assert ascii_toml(text).isascii()
    assert tomllib.loads(ascii_toml(text)) == tomllib.loads(text)


def test_a_current_directory_that_is_gone_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused(2, "plugins", "list", said=("the current directory is gone; cd into",))


def test_a_prompt_is_utf_8_whatever_the_locale(finished):
    """An argument comes as surrogates where the locale does not have its bytes."""
    mangled = "\u8336".encode().decode("ascii", "surrogateescape")
    assert done("sample", finished[0], mangled, "--json").events[0]["prompt"] == "\u8336"
    refused(2, "sample", finished[0], "\udcff", said=("the prompt is not UTF-8 (byte 1): PROMPT",))
