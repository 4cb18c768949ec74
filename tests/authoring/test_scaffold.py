"""`plugins new`: a new plugin passes its check and its own test untouched, as a file and as an installed package."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from minirlhf.authoring.scaffold import BODIES
from tests.cli.calling import call, done, refused

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run_test(path, *arguments):
    """Import a test file and run its only test."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (test,) = [value for name, value in vars(module).items() if name.startswith("test_")]
    test(*arguments)


@pytest.mark.parametrize("kind", BODIES)
def test_a_new_plugin_passes_its_check_and_its_test_and_runs(kind, folder, tiny):
    name = f"new_{kind}"
    assert done("plugins", "new", name, "--kind", kind).out.split() == [f"{name}.py", f"test_{name}.py"]
    flag = ("--set", f'run.observers=["{name}"]') if kind == "observer" else (f"--{kind}", name)
    assert "FAIL" not in done("plugins", "check", f"{name}.py").out
    run_test(folder / f"test_{name}.py", *([folder] if kind == "observer" else []))
    done("run", *tiny, "--plugin", f"{name}.py", *flag, "--out", "run")
    if kind == "observer":
        assert len((folder / "run" / f"{name}.txt").read_text().splitlines()) == 2


def test_a_new_package_is_found_once_it_is_installed(folder, monkeypatch):
    """Installed by hand as pip would do it: a dist-info folder with the entry point, beside the module on the path."""
    made = done("plugins", "new", "near_words", "--kind", "reward", "--package")
    assert made.out.split() == [
        f"minirlhf-near-words/{name}" for name in ("near_words.py", "test_near_words.py", "pyproject.toml", "README.md")
    ]
    place = folder / "minirlhf-near-words"
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    info = place / "minirlhf_near_words-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["minirlhf"].items())
    (info / "entry_points.txt").write_text(f"[minirlhf]\n{points}")
    monkeypatch.syspath_prepend(place)
    monkeypatch.delenv("MINIRLHF_LOAD_PLUGINS", raising=False)
    shown = done("plugins", "check", "near_words")
    consoles = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (manual,) = [block for block in consoles if "plugins new near_words" in block]
    for line in shown.out.splitlines()[1:-1]:  # without the first line (a path) and the last (a time)
        assert line in manual.splitlines()
    for line in made.out.splitlines() + made.err.splitlines():
        assert line in manual.splitlines()
    assert "reward near_words of" in shown.out
    assert "FAIL" not in shown.out
    run_test(place / "test_near_words.py")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "~",
        "C:",
        "",
        "-x",
        "Big",
        "1st",
        "x" * 300,
        "class",
        "json",
        "é",
        "abs",
        "numpy",
        "hookimpl",
        "gae",
    ],
)
def test_a_name_that_is_none_is_refused(name, folder):
    result = call("plugins", "new", "--kind", "kl", "--", name)
    assert (result.code, len(result.errors)) == (2, 1), result.err
    assert list(folder.iterdir()) == []


def test_nothing_is_written_over(folder):
    (folder / "test_mine.py").write_text("mine")
    refused(2, "plugins", "new", "mine", "--kind", "kl", said=("test_mine.py", "exists"))
    assert [path.name for path in folder.iterdir()] == ["test_mine.py"]
