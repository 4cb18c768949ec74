"""Paths of a configuration: absolute from any layer, relative inside a run directory, and equal but moved."""

import json
from pathlib import Path

import pytest

from minirlhf.config.layers import load_config
from minirlhf.config.paths import absolute_paths, check_place, relative_paths, same_but_moved
from minirlhf.config.schema import CorpusConfig
from minirlhf.config.toml import dump_toml
from minirlhf.errors import InputError, PluginError


@pytest.mark.parametrize("use", ["trained", "minirlhf:trained"])
def test_the_path_of_a_trained_reward_is_absolute_under_any_label_from_any_layer(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rm").mkdir()
    by_sets, _ = load_config("tiny", sets=[f"rewards.good.use={use}", "rewards.good.path=rm"])
    assert by_sets.rewards["good"].options == {"path": str(tmp_path / "rm")}
    folder = tmp_path / "folder"
    (folder / "rm").mkdir(parents=True)
    (folder / "a.toml").write_text(f'[rewards.good]\nuse = "{use}"\npath = "rm"\n')
    by_file, _ = load_config("folder/a.toml")
    assert by_file.rewards["good"].options == {"path": str(folder / "rm")}
    (folder / "a.toml").write_text(f'[rewards.good]\nuse = "{use}"\n')
    mixed, _ = load_config("folder/a.toml", sets=["rewards.good.path=rm"])
    assert mixed.rewards["good"].options == {"path": str(tmp_path / "rm")}


def test_an_option_path_is_a_path_if_something_is_there_or_if_it_looks_like_one(tmp_path, monkeypatch):
    """A plugin may mean a place in a JSON object, or a route, by its `path`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("good")
    for value, read in [
        ("choices.message", "choices.message"),
        ("https://x/y", "https://x/y"),
        ("words.txt", f"{tmp_path}/words.txt"),
        ("./log.txt", f"{tmp_path}/log.txt"),
        ("/abs", "/abs"),
    ]:
        layer = absolute_paths({"rewards": {"a": {"path": value}}}, tmp_path)
        assert layer["rewards"]["a"]["path"] == read


def test_paths_inside_the_folder_are_relative_and_read_back_the_same():
    folder = Path("/runs/r")
    layer = {
        "corpus": {"text": "reviews", "prompts": "/runs/r/prompts", "preferences": "/data/p.jsonl"},
        "run": {"bases": "/runs/r/bases", "observers": ["/runs/r/o.py:O", "csv"]},
        "rewards": {"a": {"use": "/runs/r/f.py:f", "path": "/runs/r/rm"}, "b": {"path": "https://x/y"}},
        "plugins": ["/runs/r/g.py", "package.module"],
    }
    relative = relative_paths(layer, folder)
    assert relative == {
        "corpus": {"text": "reviews", "prompts": "./prompts", "preferences": "/data/p.jsonl"},
        "run": {"bases": "./bases", "observers": ["./o.py:O", "csv"]},
        "rewards": {"a": {"use": "./f.py:f", "path": "./rm"}, "b": {"path": "https://x/y"}},
        "plugins": ["./g.py", "package.module"],
    }
    assert absolute_paths(relative, folder) == layer
    assert absolute_paths(relative, Path("/new"))["corpus"]["prompts"] == "/new/prompts"


def test_a_config_that_lies_in_a_run_directory_moves_with_its_files(tmp_path):
    config, _ = load_config("tiny", sets=[f"corpus.prompts={tmp_path}/a/p.jsonl"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.toml").write_text(dump_toml(config, tmp_path / "a"))
    moved, _ = load_config(str(tmp_path / "b" / "config.toml"))
    assert moved.corpus.prompts == f"{tmp_path}/b/p.jsonl"


@pytest.mark.parametrize(
    ("key", "was", "now", "moved"),
    [
        ("corpus.prompts", "/a/p.jsonl", "/b/q.jsonl", True),
        ("corpus.text", "reviews", "/b/reviews.txt", False),
        ("corpus.prompts", None, "/b/p.jsonl", False),
        ("corpus.errors", "strict", "replace", False),
        ("rewards.good.options.path", "/a/rm", "/b/rm", True),
        ("rewards.good.options.words", "/a", "/b", False),
        ("rewards.f.use", "/a/f.py:f", "/b/f.py:f", True),
        ("rewards.f.use", "/a/f.py:f", "/b/f.py:g", False),
        ("rewards.f.use", "/a/f.py:f", "/b/renamed.py:f", True),
        ("rewards.f.use", "length", "sentiment", False),
        ("kl.estimator", "/a/k.py:k", "/b/k.py:k", True),
        ("ppo.lr", "0.1", "0.2", False),
    ],
)
def test_what_counts_as_moved(key, was, now, moved):
    assert same_but_moved(key, was, now) is moved


@pytest.mark.parametrize("key", ["text", "prompts", "heldout_prompts", "preferences", "demonstrations"])
def test_a_file_that_is_gone_is_refused_with_the_key_of_its_place(key, tmp_path):
    corpus = CorpusConfig(**{key: str(tmp_path / "gone.jsonl")})
    with pytest.raises(InputError, match=rf"--set corpus\.{key}=PATH"):
        check_place(corpus, key)


def test_a_plugin_file_is_asked_for_only_where_its_component_is_used(tmp_path):
    file = tmp_path / "gone.py"
    (tmp_path / "c.toml").write_text(f"plugins = [{json.dumps(str(file))}]\n[rewards.f]\nuse = '{file}:f'\n")
    config, _ = load_config(str(tmp_path / "c.toml"), kinds=())
    assert config.rewards["f"].use == f"{file}:f"
    sets = [f"rewards.f.use={file}:f"]
    load_config("tiny", sets=sets, kinds=("kl",))
    with pytest.raises(PluginError, match=r"--set rewards\.f\.use=FILE\.py:f"):
        load_config("tiny", sets=sets)
    with pytest.raises(PluginError, match=r"--set run\.observers='\[\"FILE\.py:f\"\]'"):
        load_config("tiny", sets=[f'run.observers=["{file}:f"]'])
    with pytest.raises(PluginError, match=r"--set 'plugins=\[\"FILE\.py\"\]'"):
        load_config(str(tmp_path / "c.toml"))
