"""plugins list and plugins show: where a component is from, what can be set, and what could not be loaded."""

import json
import sys

import pytest

from tests.cli.calling import done, refused
from tests.plugins.files import EXAMPLES, write

TEA = """
    __version__ = "0.3"

    def tea(completions, *, cups: int = 2, kind: str = "green"):
        return [0.0] * len(completions)

    @hookimpl
    def register_reward_models(): return {"tea": tea}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A plugin in a file, one in an installed package, and a package that cannot be imported."""
    write(tmp_path, "mine", TEA)
    write(tmp_path, "tea_plugin", TEA)
    for distribution, version, point in (("sad_plugin", "1.5", "sad = gone"), ("good_tea", "2.0", "good = tea_plugin")):
        info = tmp_path / f"{distribution}-{version}.dist-info"
        info.mkdir()
        name = distribution.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[minirlhf]\n{point}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MINIRLHF_LOAD_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("tea_plugin", None)


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_list_shows_components_and_plugins_those_that_failed_too(place):
    components, plugins = done("plugins", "list", "--plugin", "mine.py").out.split("\n\n")
    assert ["reward", "tea", "mine", "cups, kind"] in [cells(line) for line in components.splitlines()]
    rows = {row[0]: row[1:] for row in map(cells, plugins.splitlines())}
    assert [line.split()[0] for line in plugins.splitlines()] == ["plugin", "minirlhf", "mine", "good", "sad"]
    assert rows["minirlhf"][:2] == ["0.1.0", "package minirlhf"]
    assert rows["mine"] == ["0.3", str(place / "mine.py"), "loaded: 1 component"]
    assert rows["good"] == ["2.0", "package good-tea", "loaded: 1 component"]
    assert rows["sad"][:2] == ["1.5", "package sad-plugin"]
    assert rows["sad"][2].startswith("failed: plugin 'sad' raised ModuleNotFoundError (No module named 'gone')")
    assert "loaded" not in done("plugins", "list", "--kind", "kl").out


def test_list_as_json_has_a_line_a_component_and_a_line_a_plugin(place):
    rows = done("plugins", "list", "--plugin", "mine.py", "--json").events
    (tea,) = [row for row in rows if row.get("owner") == "good"]
    assert (tea["kind"], tea["name"], tea["version"], tea["source"]) == ("reward", "tea", "2.0", "package good-tea")
    assert tea["options"] == {"cups": "cups: int = 2", "kind": "kind: str = 'green'"}
    plugins = {row["plugin"]: row for row in rows if "plugin" in row}
    assert {name: row["status"] for name, row in plugins.items()} == {
        "minirlhf": "loaded", "mine": "loaded", "good": "loaded", "sad": "failed",
    }  # fmt: skip
    assert plugins["good"]["components"] == ["reward tea"]
    assert "ModuleNotFoundError" in plugins["sad"]["reason"]
    assert plugins["good"]["reason"] == ""


def test_show_says_where_a_component_is_from(place):
    shown = done("plugins", "show", "good:tea").out.splitlines()
    assert shown[0] == "tea: reward of plugin good"
    assert shown[1] == "  plugin   2.0, package good-tea"
    assert "  option   cups: int = 2" in shown
    assert json.loads(done("plugins", "show", "mine.py:tea", "--kind", "reward", "--json").out)["source"] == str(
        place / "mine.py"
    )


def test_show_of_a_plugin_says_whether_it_is_loaded_and_why_not(place):
    sad = done("plugins", "show", "sad").out.splitlines()
    assert sad[0] == "sad: plugin 1.5, package sad-plugin"
    assert "failed: plugin 'sad' raised ModuleNotFoundError" in sad[1]
    good = done("plugins", "show", "good").out.splitlines()
    assert good[1:] == ["  loaded: 1 component", "  reward     tea"]
    assert json.loads(done("plugins", "show", "sad", "--json").out)["status"] == "failed"
    refused(2, "plugins", "show", "good", "--kind", "reward", said=("unknown reward 'good'",))
    csv = done("plugins", "show", "csv_log", "--plugin", EXAMPLES / "csv_log.py").out  # the name of both
    assert csv.startswith("csv_log: observer of plugin csv_log\n")
