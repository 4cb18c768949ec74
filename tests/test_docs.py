"""Check docs/ against the program: hooks, inputs, metrics, fields, events, exit codes, commands, and code that runs.

Every page of docs/ and the README is read. Building the pages with Sphinx is not here: .ci/run does it. What only the
README promises (its size, the lines of installation) is in test_readme.py.
"""

import importlib.util
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from minirlhf import errors, hookspecs
from minirlhf.cli import main
from minirlhf.components.component import INPUTS, OBSERVER_METHODS
from minirlhf.errors import UsageError, UserError
from minirlhf.events import EVENTS
from minirlhf.studies import compare
from tests.cli.calling import call, done, refused
from tests.manual import ROOT, blocks, commands, read

DOCS = ROOT / "docs"
LARGEST_PAGE = 16_000  # bytes
PAGES = {
    path.relative_to(ROOT).as_posix(): read(path.relative_to(ROOT))
    for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("plugins/*.md"), ROOT / "README.md"])
}


def page(name):
    """The text of a page of docs/."""
    return PAGES[f"docs/{name}.md"]


def section(text, title):
    """The text under a heading, up to the next one of its level or above; a comment in a fenced block is no heading."""
    level, inside, fenced, lines = title.partition(" ")[0], False, False, []
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if inside and not fenced and re.match(rf"#{{1,{len(level)}}} ", line):
            break
        if inside:
            lines.append(line)
        inside |= not fenced and line == title
    assert inside, f"there is no heading {title!r}"
    return "\n".join(lines) + "\n"


def without_code(text):
    """The text without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def tables(text):
    """The tables of a text, each as rows of cells without its head."""
    found = re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]] for table in found]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


def names(cell):
    """The code spans of a table's cell."""
    return re.findall(r"`([^`]+)`", cell)


def load_source(name, path):
    """Import a file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_finished(name):
    assert "<!--" not in PAGES[name]
    assert "TODO" not in PAGES[name]
    assert "@@" not in PAGES[name]


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_a_page_is_small_enough_to_read(name):
    assert len(PAGES[name].encode()) <= LARGEST_PAGE


def test_the_index_leads_to_every_page():
    listed = [
        line
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page("index"), flags=re.DOTALL)
        for line in tree.split()
        if not line.startswith(":") and not line[0].isupper() and not line.isdigit()
    ]
    assert sorted(listed) == sorted(name[5:-3] for name in PAGES if name.startswith("docs/") and "index" not in name)


def anchors(path):
    """The anchors of a page's headings, made as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")]), ids=lambda path: path.name)
def test_a_link_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


N_CODE = re.compile(r"(?<![A-Za-z0-9_])N\d+(?![A-Za-z0-9_])")


def test_every_code_of_the_notes_is_a_heading_of_them():
    """N7 in a docstring, a preset or a page is found in docs/notes.md as `## N7. ...`."""
    headings = set(re.findall(r"^## (N\d+)\. ", page("notes"), flags=re.MULTILINE))
    files = [p for p in (ROOT / "minirlhf").rglob("*") if p.suffix in (".py", ".toml", ".j2", ".js")]
    files += [*(ROOT / "plugins").glob("*.py"), *ROOT.glob("README*.md"), *DOCS.glob("**/*.md")]
    used = {code for path in files for code in N_CODE.findall(path.read_text(encoding="utf-8"))}
    assert len(used) >= 12  # the reader of the files finds them
    assert used <= headings


def test_every_module_of_the_api_page_is_there():
    modules = re.findall(r"automodule:: (\S+)", page("api"))
    assert len(modules) >= 20
    assert len(set(modules)) == len(modules)
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_ci_builds_the_pages_and_takes_warnings_for_errors():
    script = read(".ci/run")
    assert re.search(r"sphinx-build (-q )?-W .*-b html docs ", script)


# ---- hooks, metrics, fields, events ------------------------------------------------------------------------------


def test_every_hook_is_there_with_its_signature():
    hooks = {n: f for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("register_")}
    (table,) = tables(section(page("plugins/hooks"), "## The five hooks"))
    listed = {names(row[0])[0]: row[1] for row in table}
    assert set(listed) == {f"{name}{str(inspect.signature(hook)).partition(' ->')[0]}" for name, hook in hooks.items()}
    for method in OBSERVER_METHODS:
        assert f"`{method}(" in listed["register_observers()"]


def test_every_example_is_listed_and_no_other():
    listed = re.search(r"## Examples to copy\n(.*)", page("plugins/hooks"), re.S)
    assert listed is not None
    first_cells = re.findall(r"^\| (`.*?) \|", listed[1], re.M)
    named = re.findall(r"`(\w+\.py)`", " ".join(first_cells))
    assert sorted(named) == sorted(path.name for path in (ROOT / "plugins").glob("*.py"))


def test_every_input_that_a_component_may_name_is_there_and_no_other():
    (table,) = tables(section(page("plugins/hooks"), "## Inputs and results by kind"))
    listed = {row[0]: set(names(row[1])) - {"**columns"} for row in table}
    assert listed == {kind: set(inputs) for kind, inputs in INPUTS.items() if kind != "observer"}


def test_every_metric_of_a_run_is_there_and_no_other(finished):
    run, _ = finished
    logged = {
        key
        for line in (run / "metrics.jsonl").read_text().splitlines()
        for key in json.loads(line)
        if not key.startswith("reward/")
    }
    table, _ = tables(page("metrics"))  # the second is of the warnings
    assert {names(row[0])[0] for row in table} == logged | {"reward/LABEL"}


def test_every_field_of_an_evaluation_is_there_and_no_other(finished):
    run, _ = finished
    evaluation = json.loads((run / "evaluation.json").read_text())
    whole, side = tables(section(page("run-directory"), "## evaluation.json"))
    whole, side = ({name for row in table for name in names(row[0])} for table in (whole, side))
    assert set(evaluation) <= whole
    assert set(evaluation["policy"]) <= side
    fields = EVENTS["run_finished"]["properties"]
    assert whole == set(fields) - {"event", "run_dir", "report", "samples"}
    assert side == set(fields["policy"]["properties"])


def test_every_event_is_there_with_its_fields_and_no_other():
    (table,) = tables(section(page("run-directory"), "## Events"))
    listed = {tuple(names(row[0])): (set(names(row[2])), set(names(row[3]))) for row in table}
    forms = {}
    for name, schema in EVENTS.items():
        for form in schema.get("oneOf", [schema]):
            key = (name, form["properties"]["stage"]["const"]) if name == "stage" else (name,)
            forms.setdefault(key, []).append(form)
    real = {}
    for key, variants in forms.items():
        always = set.intersection(*(set(form["required"]) for form in variants)) - {"event", "stage"}
        some = set.union(*(set(form["properties"]) for form in variants)) - {"event", "stage"}
        real[key] = (always, some - always)
    assert listed == real


# ---- commands ----------------------------------------------------------------------------------------------------


LINES = {line: name for name, text in PAGES.items() for line in commands(text)}  # command -> a page that has it


@pytest.mark.parametrize("line", sorted(LINES))
def test_a_command_of_the_manual_has_these_arguments(line):
    """Parsed, not run: the command exists and takes them; a group's own commands, too."""
    name, *arguments = shlex.split(line)[1:]
    command = main.group.get_command(click.Context(main.group), name)
    while isinstance(command, click.Group):
        group, (name, *arguments) = command, arguments
        command = group.get_command(click.Context(group), name)
    assert command is not None
    command.make_context(name, arguments)


@pytest.mark.parametrize("line", sorted(line for line in LINES if line.startswith("minirlhf compare")))
def test_a_comparison_of_the_manual_resolves(line, tmp_path):
    """Every run of it has a configuration: they are started, and the first of each stops at once."""
    started = []

    def runner(config, registry, out, emit):
        started.append(config)
        raise UsageError("not run here")

    arguments = [*shlex.split(line)[2:], "--seeds", "1", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.compare, "__defaults__", (runner,))
        refused_runs = call("compare", *arguments)
    assert refused_runs.code == 2
    assert len(started) >= 2
    assert len({config.model_dump_json() for config in started}) == len(started)


def named_sources(text):
    """File name -> source of the Python blocks that begin with their name; of two of one name the last one."""
    return {re.match(r"# (\w+\.py)", b)[1]: b for b in blocks(text, "python") if re.match(r"# \w+\.py", b)}


@pytest.mark.parametrize("line", sorted(line for line in LINES if line.startswith("minirlhf run")))
def test_a_command_of_the_manual_is_a_configuration(line, tmp_path, monkeypatch):
    """Resolved, not run: presets, components, options and keys exist. (test_run.py runs such commands.)"""
    arguments = shlex.split(line)[2:]
    with_value = ("--out", "--resume", "--ui")  # options of `run` that `config show` does not have
    arguments = [
        a
        for i, a in enumerate(arguments)
        if a not in ("--json", "--dry-run", *with_value) and arguments[i - 1] not in with_value
    ]
    for name, source in named_sources(PAGES[LINES[line]]).items():
        (tmp_path / name).write_text(source)
    (tmp_path / "my-run.toml").write_text(blocks(section(page("running"), "## Configuration"), "toml")[0])
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    monkeypatch.chdir(tmp_path)
    shown = done("config", "show", *arguments)
    assert "[ppo]" in shown.out


@pytest.mark.parametrize("source", blocks(page("running"), "toml"))
def test_a_configuration_of_the_manual_resolves(source, tmp_path):
    (tmp_path / "file.toml").write_text(source)
    done("config", "show", tmp_path / "file.toml")


def test_the_presets_of_the_manual_are_those_of_the_package():
    (table,) = tables(section(page("running"), "## Presets"))
    listed = {name for row in table for name in names(row[0])}
    assert listed == {path.stem for path in (ROOT / "minirlhf" / "presets").glob("*.toml")}


def test_the_extras_of_the_manual_are_those_of_the_package():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    (line,) = re.findall(r"^- \*\*Extras\*\*.*?(?=\n\n)", page("running"), flags=re.DOTALL | re.MULTILINE)
    assert set(names(line)) - {"pip install '.[parquet]'", "--svg"} == set(extras)


def test_the_audit_of_the_manual_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in commands(page("plugins/testing")) if line.startswith("minirlhf audit kl jeffreys")]
    assert "jeffreys in loss: no KL" in done(*shlex.split(line)[1:]).out


def test_the_results_of_the_tutorial_are_those_of_the_readme():
    """Both show the same run, and the tutorial's table has cells of the README's rows."""
    both = read("README.md"), page("tutorial")
    shown, whole = (next(b for b in blocks(text, "text") if b.startswith("minirlhf 0")).splitlines() for text in both)
    assert {line for line in shown if not line.startswith("/")} <= set(whole)
    for once in ("pretrain ", "base  ", "ppo ", "score gain ", "J = "):  # one run, and nothing left of another
        assert [sum(line.startswith(once) for line in lines) for lines in (shown, whole)] == [1, 1]
    ours, theirs = (re.findall(r"^\| (\d \| [-+].*) \|$", text, flags=re.MULTILINE) for text in both)
    assert len(ours) == len(theirs) == 5
    for row, part in zip(ours, theirs, strict=True):
        assert set(part.split(" | ")) <= set(row.split(" | "))


# ---- code --------------------------------------------------------------------------------------------------------


def test_the_plugin_of_the_manual_runs_both_ways(tiny, tmp_path, monkeypatch):
    (tmp_path / "brevity.py").write_text(named_sources(page("plugins/tutorial"))["brevity.py"])
    monkeypatch.chdir(tmp_path)
    lines = commands(section(page("plugins/tutorial"), "## A plugin in six lines"))
    (hooked,) = [shlex.split(line)[2:] for line in lines if "--plugin brevity.py --reward brevity" in line]
    (bare,) = [shlex.split(line)[2:] for line in lines if line.endswith("--reward brevity.py:brevity")]
    done("run", *tiny, *hooked, "--out", "a")
    done("run", *tiny, *bare, "--set", "rewards.brevity.target=12", "--out", "b")
    assert (tmp_path / "a" / "evaluation.json").exists()
    first, second = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in "ab")
    assert first == second


def test_the_plugin_of_the_manual_is_checked_as_it_shows(tmp_path, monkeypatch):
    (tmp_path / "brevity.py").write_text(named_sources(page("plugins/tutorial"))["brevity.py"])
    (tmp_path / "test_brevity.py").write_text(named_sources(page("plugins/testing"))["test_brevity.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (shown,) = [b for b in blocks(page("plugins/testing"), "text") if b.startswith("reward brevity of")]
    printed = done("plugins", "check", "brevity.py").out
    for line, real in zip(shown.splitlines()[1:-1], printed.splitlines()[1:-1], strict=True):  # not the place, the time
        assert line == real
    load_source("test_brevity", tmp_path / "test_brevity.py").test_brevity()


def test_the_tutorial_runs_from_a_function_to_a_package(tiny, tmp_path, monkeypatch):
    """Each step of it in its order: what the check says, the mended function in a run, its test, in a package."""
    text = section(page("plugins/tutorial"), "## From a function to a package")
    first, mended, test = blocks(text, "python")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "variety.py"
    file.write_text(first)
    (shown,) = blocks(text, "text")
    command, *lines = shown.splitlines()
    failed = call(*shlex.split(command)[2:])
    assert failed.code == 5
    real = f"{failed.out}{failed.err}".replace(str(file), "/home/you/variety.py")
    assert real.split() == " ".join(lines).split()  # the manual breaks a long line
    file.write_text(mended)
    check, run = (shlex.split(line)[1:] for line in blocks(text, "bash")[0].splitlines())
    assert "FAIL" not in done(*check).out
    done(run[0], *tiny, *run[1:], "--out", "run")
    new = re.search(r"`minirlhf (plugins new [^`]*)`", text)[1]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = [Path(line) for line in done(*shlex.split(new)).out.splitlines()]
    function = mended.partition("\n")[2]
    source = re.sub(r"def variety\(.*?\n\n\n", lambda _: f"{function}\n\n", made[0].read_text(), flags=re.DOTALL)
    made[0].write_text(source)
    made[1].write_text(test)
    assert "reward variety of variety" in done("plugins", "check", made[0]).out
    monkeypatch.syspath_prepend(made[0].parent)
    load_source("test_variety", made[1]).test_a_word_counts_once_and_the_contract_is_kept()


def test_the_code_is_the_same_on_every_page():
    """The first run's tutorial and the page on testing repeat code of the plugin tutorial."""
    whole = named_sources(page("plugins/tutorial"))
    body = {name: source.partition("\n")[2] for name, source in whole.items()}
    for other in ("tutorial", "plugins/testing"):
        for name, source in named_sources(page(other)).items():
            if name in body:
                assert source.partition("\n")[2] == body[name], (other, name)


def test_the_exit_codes_are_those_of_the_errors_and_their_examples_hold(tiny, tmp_path):
    (table,) = tables(page("exit-codes"))
    rows = {int(row[0]): row[2] for row in table}
    raised = {kind.exit_code for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, UserError)}
    assert set(rows) == {0, 1, 130, 141, 143} | raised
    for code in (2, 3, 5, 6):
        (line,) = names(rows[code])
        arguments = shlex.split(line)[2:]
        out = () if "--out" in arguments else ("--out", tmp_path / str(code))
        refused(code, "run", *tiny, *arguments, *out)
    done(*shlex.split(names(rows[0])[0])[1:])
