"""A wheel built from the tree holds its modules and its data, and runs outside the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = {
    "minirlhf/presets/tiny.toml",
    "minirlhf/builtin/sentiment_words.txt",
    "minirlhf/corpora/reviews/text.jsonl",
    "minirlhf/corpora/reviews/prompts.jsonl",
    "minirlhf/corpora/reviews/heldout_prompts.jsonl",
    "minirlhf/corpora/reviews/PROVENANCE.md",
    "minirlhf/corpora/reviews/LICENSE",
    "minirlhf/py.typed",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl")
    return path


def test_the_modules_are_those_of_the_tree_and_the_data_is_with_them(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minirlhf").rglob("*.py")}
    assert {name for name in inside if name.endswith(".py") and "/corpora/" not in name} == tree
    assert inside >= DATA
    assert not any(name.startswith(("tests/", "plugins/")) for name in inside)


def test_it_runs_outside_the_checkout_with_its_own_corpus(wheel, tmp_path):
    """Unpacked as an installation would be, far from the sources: a whole run, prompts and text from the wheel."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    here = tmp_path / "here"
    here.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = "import minirlhf, sys; print(minirlhf.__file__, file=sys.stderr); from minirlhf.cli.main import main; main()"
    sets = ("pretrain.steps=5", "ppo.iterations=1", "evaluation.best_of=0", "evaluation.bootstrap=100", "run.threads=1")
    more = [part for value in sets for part in ("--set", value)]
    command = [sys.executable, "-P", "-c", code, "run", "tiny", "--json", *more]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == str(site / "minirlhf" / "__init__.py")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "run_finished"
    assert last["prompts"] == 16
    assert Path(last["run_dir"]).parent == here / "runs"
