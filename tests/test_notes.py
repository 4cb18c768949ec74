"""The notes are true: every entry's component, test and command exists, and both languages say the same.

Links, sizes and the commands in code blocks are held by tests/test_docs.py, as for every page.
"""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from minirlhf.cli import main
from minirlhf.components.registry import load_plugins
from tests.cli.calling import done
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
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert tests
    assert len(tests) == text.count("`tests/")  # a file alone does not say which test
    for file, function in tests:
        assert re.search(rf"^def {function}\(", read(file), flags=re.MULTILINE), (file, function)
    for file in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (ROOT / "minirlhf" / file).is_file() or (ROOT / file).is_file(), file
    commands = re.findall(r"`minirlhf ([^`]+)`", text)
    for arguments in map(shlex.split, commands):
        command = main.group.get_command(click.Context(main.group), arguments[0])
        assert command is not None, arguments
        if arguments[0] != "config":
            command.make_context(arguments[0], arguments[1:])
    assert commands


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
    return sorted(re.findall(r"(?<![A-Za-z0-9.,])[-+±]?\d+(?:,\d{3})*(?:\.\d+)?", text))


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


def answer(letter, page=QUESTIONS):
    """The section of one question, `a` to `i`."""
    return re.split(r"^## \((\w)\) .*$", read(page), flags=re.MULTILINE)[2::2]["abcdefghi".index(letter)]


def test_the_prose_of_the_answers_gives_the_same_numbers_in_both_languages():
    for letter in "abcdefghi":
        en, zh = (re.sub(r"^\|.*\|$", "", answer(letter, page), flags=re.MULTILINE) for page in PAIRS[1])
        assert numbers(en) == numbers(zh), letter


def test_the_script_of_the_variances_prints_what_the_answer_shows(capsys):
    (script,), (shown,) = blocks(answer("a"), "python"), blocks(answer("a"), "text")
    exec(compile(script, "variance.py", "exec"), {})
    assert capsys.readouterr().out == shown
    printed = dict(re.findall(r"^(\w+) .* (\S+)$", shown, flags=re.MULTILINE))
    listed = re.findall(r"^\| .* \| `(\w+)` \| ([\d.]+) \|", answer("b"), flags=re.MULTILINE)
    assert dict(listed) == printed


def test_bias_and_variance_of_gae_are_those_of_the_audit():
    found = {}
    for line in done("audit", "advantage", "gae", "--json").out.splitlines():
        row = json.loads(line)
        found[row["options"]["lam"], row["values"]] = row
    for line in re.findall(r"^\| ([\d. |]+) \|$", answer("d"), flags=re.MULTILINE):
        lam, *shown = map(float, line.split("|"))
        biases = [found[lam, critic]["gradient_bias"] for critic in ("exact", "zero", "noisy")]
        wanted = [found[lam, "exact"]["gradient_variance"], *biases]
        assert shown == [pytest.approx(x, rel=2e-4, abs=1e-6) for x in wanted]
        del found[lam, "exact"]
    assert {critic for _, critic in found} == {"zero", "noisy"}  # every lambda has its row


def test_what_the_losses_are_off_by_is_what_the_audit_says():
    lines = done("audit", "loss", "--json").out.splitlines()
    off = {r["name"]: re.search(r"off by (\d+)%", r["verdict"])[1] for r in map(json.loads, lines) if "verdict" in r}
    text = " ".join(answer("f").split())
    assert f"the gradient of `ratio` is off by {off['ratio']} %" in text
    assert f"that of `ppo_penalty` by {off['ppo_penalty']} %" in text
    (held,) = [r for r in map(json.loads, lines) if r["name"] == "ppo_clip" and r["distance"] == 0.1]
    assert f"`ppo_clip` holds back {held['held_back']:.0%}".replace("%", " %") in text
    assert off["ppo_clip"] == off["ratio"]


def test_the_script_that_shows_shapes_and_hashes_runs_on_a_finished_run(finished, capsys):
    run, _ = finished
    (script,) = blocks(answer("i"), "python")
    exec(compile(script.replace("RUN/", f"{Path(run)}/"), "shapes.py", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("numbers")
    assert lines[2].endswith("tensors differ")
    policy, reference = (line.split()[1] for line in lines[3:])
    kept = json.loads((Path(run) / "reference" / "reference.json").read_text())["weights_sha256"]
    assert kept.startswith(reference)
    assert policy != reference
