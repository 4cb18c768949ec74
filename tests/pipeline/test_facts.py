"""The facts of a run: a plugin's files with those that it imports, and which of them changed."""

from minirlhf.components.registry import load_plugins
from minirlhf.pipeline.facts import changed_since, source_hash, with_imports
from minirlhf.pipeline.resume import changed_code


def test_the_modules_that_a_plugin_imports_belong_to_its_code(tmp_path, monkeypatch):
    """g imports h_first, which imports h_second, for a constant; json and torch are of others."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "h_second_facts.py").write_text("K = 1\n")
    (tmp_path / "h_first_facts.py").write_text("from h_second_facts import K\n")
    plugin = tmp_path / "g.py"
    plugin.write_text("import json\nimport torch\nimport h_first_facts\ndef g(completions): return [1.0]\n")
    load_plugins().find("reward", f"{plugin}:g")
    assert {p.name for p in with_imports([plugin.resolve()])} == {"g.py", "h_first_facts.py", "h_second_facts.py"}


def test_changed_code_is_named_by_its_file_wherever_it_lies():
    was = {"/a/f.py": "1", "/a/g.py": "2", "/a/h.py": "3"}
    assert changed_code(was, {"/b/f.py": "1", "/b/g.py": "9"}) == ["/b/g.py", "h.py (no longer used)"]
    assert changed_code(was, {"/b/f.py": "1", "/b/g.py": "2", "/b/h.py": "3", "/b/new.py": "4"}) == []
    assert changed_code(None, {"/b/f.py": "1"}) == []


def test_the_hash_of_a_source_is_that_of_its_content(tmp_path):
    for name, text in {"a": "x", "b": "x", "c": "y"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.txt").write_text(text)
    a, b, c = (source_hash(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert source_hash(str(tmp_path / "a" / "p.txt")) == source_hash(str(tmp_path / "b" / "p.txt"))
    assert source_hash(str(tmp_path / "gone")) is None


def test_changed_code_is_named_by_its_file_and_a_renamed_file_has_not_changed():
    was = {"/a/f.py": "1", "/a/g.py": "2", "/a/h.py": "3"}
    assert changed_code(was, {"/b/renamed.py": "1", "/b/g.py": "9"}) == ["/b/g.py", "h.py (no longer used)"]
    assert changed_code(was, dict(was)) == []
    assert changed_code(None, was) == []  # a checkpoint of before


def test_files_that_changed_since_a_run_are_found_and_those_that_are_gone_are_not(tmp_path):
    for name in ("a.py", "b.jsonl"):
        (tmp_path / name).write_text(name)
    made_of = {"code": {f"{tmp_path}/a.py": "0"}, "sources": {f"{tmp_path}/b.jsonl": source_hash(f"{tmp_path}/b.jsonl"),
               f"{tmp_path}/gone": "1"}, "torch": "2"}  # fmt: skip
    assert list(changed_since(made_of)) == [f"{tmp_path}/a.py"]
    assert changed_since(None) == changed_since({"code": 5}) == {}
