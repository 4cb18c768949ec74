"""The manual is true: its tree, hooks, metrics, fields, exit codes and commands are those of the program."""

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path

import click
import pytest

from minirlhf import errors, hookspecs
from minirlhf.cli import main
from minirlhf.components.component import INPUTS, OBSERVER_METHODS
from minirlhf.errors import UsageError, UserError
from minirlhf.studies import compare
from tests.cli.calling import call, done, refused

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    """The text under a heading, up to the next one of its level or above."""
    level, rest = title.partition(" ")[0], README.partition(f"\n{title}\n")[2]
    assert rest, f"there is no heading {title!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def table(text):
    """The rows of the first table, as lists of cells, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_nothing_is_left_to_fill_in():
    assert "<!--" not in README
    assert "TODO" not in README


# ---- hooks and metrics -------------------------------------------------------------------------------------


def test_every_hook_is_there_with_its_signature():
    hooks = {n: f for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("register_")}
    listed = {names(row[0])[0]: row[1] for row in table(section("### Hooks"))}
    assert set(listed) == {f"{name}{str(inspect.signature(hook)).partition(' ->')[0]}" for name, hook in hooks.items()}
    for method in OBSERVER_METHODS:
        assert f"`{method}(" in listed["register_observers()"]


def test_every_input_that_a_component_may_name_is_there_and_no_other():
    rows = table("| kind |" + section("### Hooks").partition("| kind |")[2])
    listed = {row[0]: set(names(row[1])) - {"**columns"} for row in rows}
    assert listed == {kind: set(inputs) for kind, inputs in INPUTS.items() if kind != "observer"}


def test_every_metric_of_a_run_is_there_and_no_other(finished):
    run, _ = finished
    logged = {
        key
        for line in (run / "metrics.jsonl").read_text().splitlines()
        for key in json.loads(line)
        if not key.startswith("reward/")
    }
    assert {names(row[0])[0] for row in table(section("## What is logged"))} == logged | {"reward/LABEL"}


def test_every_field_of_an_evaluation_is_there(finished):
    run, _ = finished
    text = section("## The run directory")
    evaluation = json.loads((run / "evaluation.json").read_text())
    for name in [*evaluation, *evaluation["policy"]]:
        assert f"`{name}`" in text, name


# ---- the loop ----------------------------------------------------------------------------------------------


def test_the_lines_beside_the_pseudocode_are_those_of_the_loop_in_its_order():
    source = (ROOT / "minirlhf" / "ppo.py").read_text(encoding="utf-8")
    at = 0
    rows = table(section("## The loop"))
    assert len(rows) >= 14
    for _, code in rows:
        (line,) = names(code)
        found = source.find(f" {line}", at)
        assert found >= 0, f"{line!r} is not in ppo.py behind the line before it"
        at = found


# ---- commands ----------------------------------------------------------------------------------------------

COMMANDS = [
    line.partition(" #")[0].strip()
    for block in blocks(README, "bash")
    for line in block.splitlines()
    if line.startswith("minirlhf run")
]


COMPARISONS = [
    line.partition(" #")[0].strip()
    for block in blocks(README, "bash")
    for line in block.splitlines()
    if line.startswith("minirlhf compare")
]


LINES = [
    line.partition(" #")[0].strip()
    for block in blocks(README, "bash")
    for line in block.splitlines()
    if line.startswith("minirlhf ")
]


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_a_command_of_the_manual_has_these_arguments(line):
    """Parsed, not run: the command exists and takes them."""
    name, *arguments = shlex.split(line)[1:]
    command = main.group.get_command(click.Context(main.group), name)
    assert command is not None
    if name not in ("plugins", "config"):  # groups, whose own commands test_run.py calls
        command.make_context(name, arguments)


@pytest.mark.parametrize("line", COMPARISONS)
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


def test_the_audit_of_the_manual_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (line,) = re.findall(r"`(minirlhf audit kl jeffreys [^`]*)`", README)
    assert "jeffreys in loss: no KL" in done(*shlex.split(line)[1:]).out


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_manual_is_a_configuration(line, tmp_path, monkeypatch):
    """Resolved, not run: presets, components, options and keys exist. (test_run.py runs such commands.)"""
    arguments = shlex.split(line)[2:]
    arguments = [
        a
        for i, a in enumerate(arguments)
        if a not in ("--out", "--json", "--resume") and arguments[i - 1] not in ("--out", "--resume")
    ]
    for source in blocks(README, "python"):  # each begins with the name of its file; the last one holds
        (tmp_path / re.match(r"# (\w+\.py)", source)[1]).write_text(source)
    (tmp_path / "my-run.toml").write_text(blocks(README, "toml")[0])
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    monkeypatch.chdir(tmp_path)
    shown = done("config", "show", *arguments)
    assert "[ppo]" in shown.out


def test_the_plugin_of_the_manual_runs_both_ways(tiny, tmp_path, monkeypatch):
    (source,) = [b for b in blocks(README, "python") if b.startswith("# brevity.py")]
    (tmp_path / "brevity.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    option = ("--set", "rewards.brevity.target=12")
    done("run", *tiny, "--plugin", "brevity.py", "--reward", "brevity", *option, "--out", "a")
    done("run", *tiny, "--reward", "brevity.py:brevity", *option, "--out", "b")
    assert (tmp_path / "a" / "evaluation.json").exists()
    first, second = ((tmp_path / n / "model" / "model.safetensors").read_bytes() for n in "ab")
    assert first == second


def test_the_plugin_of_the_manual_is_checked_as_it_shows(tmp_path, monkeypatch):
    for name in ("brevity", "test_brevity"):
        (source,) = [b for b in blocks(README, "python") if b.startswith(f"# {name}.py")]
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (shown,) = [b for b in blocks(README, "text") if b.startswith("reward brevity of")]
    printed = done("plugins", "check", "brevity.py").out
    for line, real in zip(shown.splitlines()[1:-1], printed.splitlines()[1:-1], strict=True):  # not the place, the time
        assert line == real
    spec = importlib.util.spec_from_file_location("test_brevity", tmp_path / "test_brevity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_brevity()


def test_the_tutorial_runs_from_a_function_to_a_package(tiny, tmp_path, monkeypatch):
    """Each step of it in its order: what the check says, the mended function in a run, its test, in a package."""
    text = README.partition("\n### Your first reward plugin\n")[2].partition("\n### ")[0]
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
    spec = importlib.util.spec_from_file_location("test_variety", made[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_a_word_counts_once_and_the_contract_is_kept()


def test_the_exit_codes_are_those_of_the_errors_and_their_examples_hold(tiny, tmp_path):
    rows = {int(row[0]): row[2] for row in table(section("## Exit codes"))}
    raised = {kind.exit_code for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, UserError)}
    assert set(rows) == {0, 1, 130, 141, 143} | raised
    for code in (2, 3, 5, 6):
        (line,) = names(rows[code])
        arguments = shlex.split(line)[2:]
        out = () if "--out" in arguments else ("--out", tmp_path / str(code))
        refused(code, "run", *tiny, *arguments, *out)
    done(*shlex.split(names(rows[0])[0])[1:])


def test_ci_reads_the_two_lines_out_of_the_manual():
    script = (ROOT / ".ci" / "run").read_text()
    patterns = re.findall(r"grep -m1 '([^']+)' README.md", script)
    found = [[line for line in README.splitlines() if re.search(p, line)] for p in patterns]
    assert found[0][0].endswith("-c constraints.txt . && .venv/bin/minirlhf run")
    assert found[1][0] == ".venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest"
