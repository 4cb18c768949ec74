"""CONTRIBUTING, the hooks of pre-commit and the workflow say what .ci/run and pyproject.toml say."""

import re
import tomllib

from tests.manual import ROOT, read

CONTRIBUTING = read("CONTRIBUTING.md")


def test_pre_commit_runs_the_lint_and_types_of_ci():
    hooks = re.findall(r"^ +entry: (.+)$", read(".pre-commit-config.yaml"), flags=re.MULTILINE)
    lint = re.findall(r"^(\.venv/bin/(?:ruff|mypy).*)$", read(".ci/run"), flags=re.MULTILINE)
    assert len(lint) == 3
    assert hooks == lint


def test_contributing_names_the_same_lint_and_types():
    lint = re.findall(r"^\.venv/bin/((?:ruff|mypy).*)$", read(".ci/run"), flags=re.MULTILINE)
    assert " && ".join(lint) in CONTRIBUTING


def test_the_workflow_calls_the_script_and_nothing_else():
    assert re.findall(r"- run: (.+)", read(".github/workflows/ci.yml")) == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_workflow_tries_the_oldest_python_that_is_promised():
    oldest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    assert f'"{oldest}"' in read(".github/workflows/ci.yml")


def test_contributing_has_every_group_of_tests_that_the_default_leaves_out():
    options = tomllib.loads(read("pyproject.toml"))["tool"]["pytest"]["ini_options"]["addopts"]
    left_out = set(re.findall(r"not (\w+)", options))
    assert left_out == set(re.findall(r"^\| `pytest -m (\w+)`", CONTRIBUTING, flags=re.MULTILINE))


def test_the_paths_that_contributing_names_exist():
    named = re.findall(r"`?((?:minirlhf|tests|\.ci|docs)/[\w/.-]*)`?", CONTRIBUTING)
    links = re.findall(r"\]\(([^)]+)\)", CONTRIBUTING)
    assert len(named) >= 5
    for path in {*named, *links}:
        assert (ROOT / path).exists(), path
