"""The README is true: its commands, its plugin, its table, its map and its links; the Chinese one says the same."""

import importlib.util
import math
import re
import shlex
from collections import Counter

import click
import pytest

from minirlhf.cli import main
from tests.cli.calling import call, done
from tests.manual import ROOT, blocks, commands, read

README, CHINESE = read("README.md"), read("README.zh-CN.md")
BOTH = pytest.mark.parametrize("text", [README, CHINESE], ids=["en", "zh"])

# The rows of the house, lowest first, as tests/test_layers.py orders them. A row without a dot is a folder.
ROWS = (
    "text", "components", "models", "exact", "config", "rewards", "store", "builtin", "rl", "ppo.py", "stages",
    "report", "pipeline", "authoring", "studies", "cli",
)  # fmt: skip
BESIDE = ("plugins", "corpora", "tests", "docs")
NOT_LINKED = {"index", "questions"}  # the contents of the manual, and a page that notes.md leads to
MOST_BYTES = 12_000
MOST_PICTURE_BYTES = 300_000


@BOTH
def test_it_is_short_and_nothing_is_left_to_fill_in(text):
    assert len(text.encode()) <= MOST_BYTES
    assert "<!--" not in text
    assert "TODO" not in text


# ---- links and map -----------------------------------------------------------------------------------------


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


@BOTH
def test_every_link_leads_somewhere(text):
    for target in links(text):
        assert (ROOT / target).exists(), target


def test_the_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "img").iterdir())
    assert {f"docs/img/{picture.name}" for picture in pictures} == {
        x for x in links(README) if x.startswith("docs/img/")
    }
    assert all(picture.stat().st_size <= MOST_PICTURE_BYTES for picture in pictures)


def test_every_page_of_the_manual_is_linked():
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md") if not path.stem.endswith(".zh-CN")]
    assert {str(page) for page in pages if page.stem not in NOT_LINKED} <= set(links(README))


def house(text):
    """The lines of the map: (name, description)."""
    (tree,) = [block for block in blocks(text, "text") if block.startswith("minirlhf/\n")]
    return [tuple(line.split(maxsplit=1)) for line in tree.splitlines()[1:]]


@BOTH
def test_the_map_has_the_rows_of_the_house_in_their_order(text):
    assert [name.rstrip("/") for name, _ in house(text)] == [*ROWS, *BESIDE]


def test_the_rows_are_on_the_disk_and_no_other_folder_is():
    package = ROOT / "minirlhf"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders == {row for row in ROWS if "." not in row}
    assert all((package / row).exists() for row in ROWS)
    assert all((ROOT / folder).is_dir() for folder in BESIDE)


# ---- commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", sorted(set(commands(README))))
def test_a_command_has_these_arguments(line):
    """Parsed, not run: the command exists and takes them."""
    name, *arguments = shlex.split(line)[1:]
    command = main.group.get_command(click.Context(main.group), name)
    assert command is not None
    if isinstance(command, click.Group):
        inner, *arguments = arguments
        command = command.get_command(click.Context(command), inner)
        assert command is not None
    command.make_context(name, arguments)


def code_files(folder):
    """Write the Python blocks of the README, each of which begins with the name of its file."""
    for source in blocks(README, "python"):
        (folder / re.match(r"# (\w+\.py)", source)[1]).write_text(source)


@pytest.mark.parametrize("line", [line for line in commands(README) if line.startswith("minirlhf run")])
def test_a_run_is_a_configuration(line, tmp_path, monkeypatch):
    """Resolved, not run: presets, components, options and keys exist."""
    code_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[2:]
    if "--resume" not in arguments:
        assert "[ppo]" in done("config", "show", *arguments).out


@BOTH
def test_every_preset_is_named_and_no_other(text):
    (paragraph,) = [part for part in text.split("\n\n") if "`reviews`" in part and "`tiny`" in part]
    presets = {path.stem for path in (ROOT / "minirlhf" / "presets").glob("*.toml")}
    assert set(re.findall(r"`([\w-]+)`", paragraph)) - {"--help"} == presets


def test_ten_commands():
    assert len(blocks(README.partition("## Ten commands")[2], "bash")[0].splitlines()) == 10


def test_ci_reads_the_two_lines_out_of_the_readme():
    patterns = re.findall(r"grep -m1 '([^']+)' README.md", read(".ci/run"))
    found = [[line for line in README.splitlines() if re.search(pattern, line)] for pattern in patterns]
    assert found[0][0].endswith("-c constraints.txt . && .venv/bin/minirlhf run")
    assert found[1][0] == ".venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest"


# ---- the output and the table ------------------------------------------------------------------------------


def form(line):
    """A line of output without its numbers and its spacing."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", " ".join(line.split()))


def test_a_run_prints_lines_of_the_form_that_is_shown(tiny, tmp_path):
    """All but texts, paths and the true score, which only the packaged corpus has."""
    result = done("run", *tiny, "--out", tmp_path / "run", "--set", f"run.bases={tmp_path / 'bases'}")
    real = {form(line) for line in (result.out + result.err).splitlines()}
    (shown,) = [block for block in blocks(README, "text") if block.startswith("minirlhf 0")]
    heads = ("minirlhf", "pretrain", "step", "base", "ppo", "iteration", "score", "tokens", "distinct", "256")
    held = [line for line in shown.splitlines() if line.strip().startswith(heads)]
    assert len(held) >= 14
    for line in held:
        assert form(line).replace("preset reviews", "preset tiny") in real, line


def promised():
    """Rows of the table of results: the numbers of a row, the seed first."""
    rows = re.findall(r"^\| (\d \| [-+].*) \|$", README, flags=re.MULTILINE)
    return [[float(number) for number in re.findall(r"[-+]?\d+\.?\d*", row)] for row in rows]


def test_the_table_adds_up_and_bears_what_is_claimed():
    """gain = after - before; the lead over best of 16 is the difference of the two J, its interval above 0."""
    assert f"at most {math.log(16) - 15 / 16:.2f} nats" in README
    rows = promised()
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4]
    # A number of the table is rounded to 0.001, half of it up or down: 0.0015 for three of them.
    for _, before, after, gain, low, high, kl, policy, best, lead, least, most, true, unrewarded in rows:
        assert after - before == pytest.approx(gain, abs=0.0016)
        assert low < gain < high
        assert policy - best == pytest.approx(lead, abs=0.0016)
        assert after - 0.075 * kl == pytest.approx(policy, abs=0.03)  # of one response a prompt, and of several
        assert least < lead < most
        assert least > 0
        assert 0 < unrewarded < true / 2
    assert "Every interval of the lead leaves out 0" in " ".join(README.split())


# ---- the plugin --------------------------------------------------------------------------------------------


def test_the_plugin_runs_both_ways(tiny, tmp_path, monkeypatch):
    code_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    option = ("--set", "rewards.brevity.target=12")
    done("run", *tiny, "--plugin", "brevity.py", "--reward", "brevity", *option, "--out", "a")
    done("run", *tiny, "--reward", "brevity.py:brevity", *option, "--out", "b")
    assert (tmp_path / "a" / "evaluation.json").exists()
    first, second = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in "ab")
    assert first == second


def test_the_plugin_is_checked_and_its_test_passes(tmp_path, monkeypatch):
    code_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [line for line in commands(README) if line.startswith("minirlhf plugins check")]
    checked = call(*shlex.split(line)[1:])
    assert checked.code == 0
    assert "reward brevity of brevity" in checked.out
    assert "FAIL" not in checked.out
    spec = importlib.util.spec_from_file_location("test_brevity", tmp_path / "test_brevity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_brevity()


# ---- the Chinese README ------------------------------------------------------------------------------------


def test_each_readme_links_the_other_at_the_top():
    assert "README.zh-CN.md" in README[:100]
    assert "README.md" in CHINESE[:100]


def sections(text):
    """The text by level-two headings, the part before the first one included."""
    return re.split(r"^## .*\n", text, flags=re.MULTILINE)


def english_links(text):
    """Link targets, a translated page or picture counted as the one that it translates."""
    return Counter(target.replace(".zh-CN.", ".") for target in links(text))


def bare(block):
    """A block of code without comments and, for the map, without descriptions."""
    if block.startswith("minirlhf/\n"):
        return [name for name, _ in house(f"```text\n{block}```")]
    return [line.partition(" #")[0].rstrip() for line in block.splitlines()]


def numbers(text):
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    return Counter(re.findall(r"[-+]?\d[\d.,]*\d|[-+]?\d", prose))


def test_the_chinese_readme_has_the_same_sections_links_code_and_numbers():
    english, chinese = sections(README), sections(CHINESE)
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        assert english_links(ours) == english_links(theirs)
        assert numbers(ours) == numbers(theirs), ours[:60]
        languages = re.findall(r"^```(\w+)$", ours, flags=re.MULTILINE)
        assert languages == re.findall(r"^```(\w+)$", theirs, flags=re.MULTILINE)
        for language in set(languages):
            for one, other in zip(blocks(ours, language), blocks(theirs, language), strict=True):
                assert bare(one) == bare(other)


def test_the_chinese_readme_is_chinese():
    """Every paragraph of prose, and every comment of a command."""
    prose = re.sub(r"^```.*?^```", "", CHINESE, flags=re.DOTALL | re.MULTILINE)
    paragraphs = [part for part in prose.split("\n\n") if len(part) > 30 and not part.startswith("|")]
    comments = [line.partition(" # ")[2] for block in blocks(CHINESE, "bash") for line in block.splitlines()]
    for text in [*paragraphs, *filter(None, comments)]:
        assert re.search(r"[\u4e00-\u9fff]", text), text
