"""The notes are true: every entry's component, test and command exists, and both languages say the same.

Links, sizes and the commands in code blocks are held by tests/test_docs.py, as for every page.
"""

import re
import shlex
from pathlib import Path

import click
import pytest

from minirlhf.cli import main
from minirlhf.components.registry import load_plugins
from tests.manual import ROOT, blocks, read

NOTES, QUESTIONS = "docs/notes.md", "docs/questions.md"
PAIRS = [(NOTES, "docs/notes.zh-CN.md"), (QUESTIONS, "docs/questions.zh-CN.md")]
KINDS = {"advantage": "advantage", "advantages": "advantage", "loss": "loss", "estimators": "kl"}


def entries(page):
    """{N-code: text below its heading}"""
    parts = re.split(r"^## (N\d+)\. .*$", read(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", PAIRS[0])
def test_the_headings_are_n1_to_n20_in_order(page):
    assert list(entries(page)) == [f"N{n}" for n in range(1, 21)]


@pytest.mark.parametrize("code", entries(NOTES))
def test_an_entry_names_a_component_a_test_and_a_command_that_exist(code):
    text = " ".join(entries(NOTES)[code].split())
    assert "See it: " in text
    tests = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert tests
    for file, function in tests:
        assert re.search(rf"^def {function or 'test_'}", read(file), flags=re.MULTILINE), (file, function)
    for file in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (ROOT / "minirlhf" / file).is_file() or (ROOT / file).is_file(), file
    commands = re.findall(r"`minirlhf ([^`]+)`", text)
    for arguments in map(shlex.split, commands):
        command = main.group.get_command(click.Context(main.group), arguments[0])
        assert command is not None, arguments
        if arguments[0] != "config":
            command.make_context(arguments[0], arguments[1:])
    assert commands or "metrics of any run" in text or "docs" in text or "[the metrics]" in text


def test_the_components_that_the_notes_name_are_in_the_registry():
    registry, named = load_plugins(entry_points=False), []
    for text in entries(NOTES).values():
        for line in re.findall(r"^- Components?: .*(?:\n  .*)*", text, flags=re.MULTILINE):
            for word, names in re.findall(
                r"\b(advantages?|loss|estimators) ((?:`\w+`(?: \([^)]*\))?(?:, | and )?)+)", line
            ):
                named += [(KINDS[word], name) for name in re.findall(r"`(\w+)`", names)]
    for kind, name in named:
        registry.find(kind, name)
    assert len(named) >= 15


def loop_table():
    """(line of the notes, line of ppo.py) of each row of docs/loop.md."""
    return re.findall(r"^\| (.+?) \| `([^`]+)` \|$", read("docs/loop.md"), flags=re.MULTILINE)


def test_the_lines_beside_the_pseudocode_are_those_of_the_loop_in_its_order():
    source, at = read("minirlhf/ppo.py"), 0
    assert len(loop_table()) >= 15
    for _, line in loop_table():
        found = source.find(f" {line}", at)
        assert found >= 0, f"{line!r} is not in ppo.py behind the line before it"
        at = found + 1


def test_the_loop_page_has_every_line_of_the_notes_in_their_order():
    """The table's left cells begin as the lines of N19 do, in their order."""
    (block,) = [b for b in blocks(read(NOTES), "text") if "optimizer step" in b]
    wanted = [re.split(r"\W", line.strip())[0] for line in block.splitlines()]
    assert len(wanted) >= 15
    left, at = [re.split(r"\W", cell)[0] for cell, _ in loop_table()], -1
    for word in wanted:
        at = left.index(word, at + 1)


def numbers(text):
    """Numbers of a page, without those in code blocks and addresses, as they are written in both languages."""
    text = re.sub(r"```.*?```|\]\([^)]*\)|\$.*?\$", " ", text, flags=re.DOTALL)
    return sorted(re.findall(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?", text))


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_formulas_code_and_tables(english, chinese):
    en, zh = read(english), read(chinese)
    assert re.findall(r"^\$\$.*?\$\$$", en, flags=re.MULTILINE) == re.findall(r"^\$\$.*?\$\$$", zh, flags=re.MULTILINE)
    assert re.findall(r"```.*?```", en, flags=re.DOTALL) == re.findall(r"```.*?```", zh, flags=re.DOTALL)
    assert [h[:5] for h in re.findall(r"^#+ .*$", en, flags=re.MULTILINE)][1:] == [
        h[:5] for h in re.findall(r"^#+ .*$", zh, flags=re.MULTILINE)
    ][1:]
    links = [
        sorted(re.sub(r"\.zh-CN|#.*", "", link) for link in re.findall(r"\]\(([^)]+)\)", page)) for page in (en, zh)
    ]
    assert links[0] == links[1]


def test_the_answers_in_both_languages_give_the_same_numbers():
    tables = [re.findall(r"^\|.*\|$", read(page), flags=re.MULTILINE) for page in PAIRS[1]]
    assert len(tables[0]) == len(tables[1]) >= 50
    for en, zh in zip(*tables, strict=True):
        assert numbers(en) == numbers(zh), (en, zh)


def test_the_script_that_shows_the_shapes_runs_on_a_finished_run(finished, capsys):
    run, _ = finished
    (script,) = blocks(read(QUESTIONS), "python")
    exec(compile(script.replace("RUN/", f"{Path(run)}/"), "shapes.py", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("numbers")
    assert lines[2].endswith("tensors differ")
