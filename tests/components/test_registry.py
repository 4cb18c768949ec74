"""Finding plugins, and blaming the right one: every fault is made in a stack of three plugins."""

import importlib.metadata
import sys

import pytest

from minirlhf import PROJECT, hookspecs
from minirlhf.components.component import KINDS
from minirlhf.components.registry import HOOKS, Registry, load_plugins
from minirlhf.errors import PluginError, UsageError
from tests.plugins.files import refusal, reward_plugin, write


def loaded(*plugins):
    return load_plugins(plugins, entry_points=False)


def rewards(registry):
    return {f"{c.owner}:{c.name}" for c in registry.listing() if c.kind == "reward" and c.owner != PROJECT}


# ---- built-ins and the contract ---------------------------------------------------------------------------


def test_the_built_ins_come_through_the_same_hooks():
    registry = loaded()
    names = {kind: {c.name for c in registry.listing() if c.kind == kind} for kind in KINDS}
    assert names["reward"] >= {"sentiment", "length", "keywords", "regex", "repetition"}
    assert names["kl"] >= {"k1", "k2", "k3", "abs", "exact"}
    assert names["advantage"] >= {"gae", "mc", "reward_to_go"}
    assert names["loss"] >= {"ratio", "ppo_clip"}
    assert names["observer"] == {"tensorboard"}
    assert {c.owner for c in registry.components} == {"minirlhf"}
    assert registry.warnings == []
    for component in registry.listing():  # module-level functions named as the component
        assert getattr(sys.modules[component.fn.__module__], component.name) is component.fn


def test_the_hooks_are_those_of_the_kinds():
    specs = {name for name, value in vars(hookspecs).items() if hasattr(value, "minirlhf_spec")}
    assert specs == set(HOOKS.values())
    assert list(HOOKS) == list(KINDS)


def test_a_file_that_fails_leaves_no_half_module(tmp_path):
    before = set(sys.modules)
    with pytest.raises(PluginError):
        loaded(write(tmp_path, "half", "x = 1 / 0"))
    assert set(sys.modules) == before


def test_two_loads_share_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = reward_plugin(tmp_path, "one")
    assert rewards(loaded(file)) == {"one:one"}
    assert rewards(loaded()) == set()
    reward_plugin(tmp_path, "one", "return [1.0] * len(completions)")  # the same length, within the same second
    again = loaded(file).find("reward", "one").build({})
    assert again({"completions": ["a"]}) == [1.0]
    assert list(tmp_path.iterdir()) == [tmp_path / "one.py"]  # no __pycache__ beside it


# ---- where plugins come from ------------------------------------------------------------------------------


def test_a_file_named_twice_is_loaded_once(tmp_path, monkeypatch):
    file = reward_plugin(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    assert rewards(loaded(file, "one.py", "./one.py")) == {"one:one"}


def test_a_module_is_named_by_its_import_name(tmp_path, monkeypatch):
    reward_plugin(tmp_path, "plugin_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    registry = loaded("plugin_of_mine", "plugin_of_mine", str(tmp_path / "plugin_of_mine.py"))
    assert rewards(registry) == {"plugin_of_mine:plugin_of_mine"}
    sys.modules.pop("plugin_of_mine")


def test_nothing_is_loaded_from_the_current_directory_by_itself(tmp_path, monkeypatch):
    reward_plugin(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    assert rewards(loaded()) == set()
    with pytest.raises(PluginError) as error:
        loaded("one")
    refusal(error.value, 5, "plugin 'one' is not found", "give the path of a .py file")


def test_files_of_one_stem_have_different_owners(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        reward_plugin(tmp_path / folder, "one", f"return ['{folder}']")
    registry = loaded(str(tmp_path / "a" / "one.py"), str(tmp_path / "b" / "one.py"))
    assert rewards(registry) == {"one:one", "b/one:one"}
    assert registry.find("reward", "b/one:one").build({})({"completions": [""]}) == ["b"]
    assert registry.find("reward", "one:one").build({})({"completions": [""]}) == ["a"]


def test_a_function_of_a_file_needs_no_hook(tmp_path):
    file = write(tmp_path, "bare", "def short(completions, *, most: int = 3): return [most]")
    component = loaded().find("reward", f"{file}:short")
    assert (component.name, component.owner, component.path) == ("short", "bare", file)
    assert component.build({"most": 4})({"completions": [""]}) == [4]


def test_a_file_serves_as_plugin_and_by_function(tmp_path):
    file = write(
        tmp_path,
        "both",
        """
        loads = []
        def short(completions): return [len(loads)]
        loads.append(1)

        @hookimpl
        def register_reward_models(): return {"short": short}
        """,
    )
    registry = loaded(file)
    assert registry.find("reward", f"{file}:short").fn is registry.find("reward", "short").fn


def test_a_dataclass_in_a_plugin_file_works(tmp_path):
    file = tmp_path / "data.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Point:\n"
        "    x: int\n"
        "def score(completions, *, at: int = 1): return [Point(at).x]\n"
    )
    assert loaded().find("reward", f"{file}:score").build({})({"completions": [""]}) == [1]


# ---- choosing ---------------------------------------------------------------------------------------------


def test_a_duplicate_is_an_error_only_when_it_is_chosen(tmp_path):
    source = """
        def length(completions): return [{n}]
        def other(completions): return [{n}]

        @hookimpl
        def register_reward_models(): return {{"length": length, "only_{name}": other}}
    """
    files = [write(tmp_path, name, source.format(n=i, name=name)) for i, name in enumerate("abc")]
    registry = loaded(*files)
    assert registry.find("reward", "only_b").owner == "b"
    with pytest.raises(PluginError) as error:
        registry.find("reward", "length")
    refusal(error.value, 5, "'minirlhf'", "'a'", "'b'", "'c'", "choose one", "b:length", f"{files[1]}:3")
    assert registry.find("reward", "b:length").build({})({"completions": [""]}) == [1]
    assert registry.find("reward", "minirlhf:length").owner == "minirlhf"


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("reward", "lenght", "unknown reward 'lenght' (did you mean 'length'"),
        ("kl", "k9", "unknown KL estimator 'k9'"),
        ("kl", "minirlhf:k9", "choose from abs (minirlhf), exact (minirlhf), k1 (minirlhf)"),
        ("reward", "one:length", "unknown reward 'one:length'"),
        ("loss", "k1", "unknown policy loss 'k1'"),
        ("observer", "x", "choose from tensorboard (minirlhf)"),
        ("reward", "one.py", "FILE.py:FUNCTION"),
        ("reward", "", "unknown reward ''"),
    ],
)
def test_an_unknown_name_lists_the_choices_with_their_owners(tmp_path, kind, name, said):
    registry = loaded(*(reward_plugin(tmp_path, name) for name in ("one", "two", "three")))
    with pytest.raises(UsageError) as error:
        registry.find(kind, name)
    refusal(error.value, 2, said)


# ---- faults of what the user named: exit 5, the right plugin of three -------------------------------------

FAULTS = {
    "misspelt hook": (
        "@hookimpl\ndef register_reward_model(): return {}",
        ["unknown hook 'register_reward_model' (did you mean 'register_reward_models'", "middle.py:2"],
    ),
    "unknown hook": (
        "@hookimpl\ndef on_start(): return {}",
        ["unknown hook 'on_start'", "hooks are register_reward_models, register_kl_estimators"],
    ),
    "hook with an argument": (
        "@hookimpl\ndef register_reward_models(tokenizer): return {}",
        ["wrong hook", "'tokenizer'", "take no arguments"],
    ),
    "hook without mark": (
        "def register_reward_models(): return {}",
        ["without its mark", "decorate it with @hookimpl", "middle.py:2"],
    ),
    "misspelt hook without mark": (
        "def register_reward_model(): return {}",
        ["'register_reward_model' without its mark"],
    ),
    "nothing": ("x = 1", ["registers nothing", "FILE.py:FUNCTION"]),
    "an empty dict": ("@hookimpl\ndef register_reward_models(): return {}", ["registers nothing"]),
    "no dict": (
        "@hookimpl\ndef register_reward_models(): return [print]",
        ["register_reward_models of plugin 'middle' returned a list (expected a dict)", "middle.py:2"],
    ),
    "no return": ("@hookimpl\ndef register_observers(): pass", ["returned None (expected a dict)"]),
    "no function": (
        "@hookimpl\ndef register_reward_models(): return {'x': 3}",
        ["reward 'x' of plugin 'middle' is not a function but 3 (int)"],
    ),
    "a bad name": (
        "@hookimpl\ndef register_reward_models(): return {'../x': print}",
        ["a bad name '../x'", "letters, digits"],
    ),
    "a name that is no text": (
        "@hookimpl\ndef register_kl_estimators(): return {1: print}",
        ["a bad name 1"],
    ),
    "an unknown input": (
        "def f(logprob): ...\n@hookimpl\ndef register_kl_estimators(): return {'f': f}",
        ["KL estimator 'f' of plugin 'middle' takes an unknown input 'logprob' (did you mean", "middle.py:2"],
    ),
    "a hook that raises": (
        "@hookimpl\ndef register_reward_models():\n    raise OSError('no weights')",
        ["register_reward_models of plugin 'middle' raised OSError (no weights)", "middle.py:4"],
    ),
    "an import that fails": ("import not_there_at_all", ["ModuleNotFoundError", "middle.py:2"]),
    "code that raises": ("\ndef f():\n    return 1 / 0\nf()", ["ZeroDivisionError", "middle.py:4"]),
    "code that exits": ("raise SystemExit(0)", ["raised SystemExit (0)", "middle.py:2"]),
    "a syntax error": ("def f(:\n    pass", ["SyntaxError", "middle.py:2"]),
    "bytes that are no text": ("x = '\0'", ["raised SyntaxError"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_named_plugin_names_it_in_a_stack_of_three(tmp_path, fault):
    source, said = FAULTS[fault]
    first, last = reward_plugin(tmp_path, "first"), reward_plugin(tmp_path, "last")
    (tmp_path / "middle.py").write_text(f"from minirlhf import hookimpl\n{source}\n")
    with pytest.raises(PluginError) as error:
        loaded(first, str(tmp_path / "middle.py"), last)
    text = refusal(error.value, 5, "'middle'", str(tmp_path / "middle.py"), *said)
    assert "'first'" not in text
    assert "'last'" not in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py", "plugin 'nowhere' is not found"),
        ("not_a_module_at_all", "plugin 'not_a_module_at_all' is not found"),
        ("not_a_package.at_all", "plugin 'not_a_package.at_all' is not found"),
        ("minirlhf.not_there", "plugin 'minirlhf.not_there' is not found"),
        ("..", "plugin '..' "),
        ("", "plugin '' "),
        ("./folder", "plugin 'folder' is not found"),
    ],
)
def test_a_plugin_that_is_not_there_is_exit_5(tmp_path, monkeypatch, name, said):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError) as error:
        loaded(name)
    refusal(error.value, 5, said)


def test_a_module_that_fails_to_import_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("x = 1\nimport broken\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as error:
        loaded("broken_inside")
    refusal(error.value, 5, "'broken_inside' raised ModuleNotFoundError", f"{tmp_path}/broken_inside.py:2")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nowhere.py:f", "plugin 'nowhere' is not found"),
        ("bare.py:shrot", "no function 'shrot' (did you mean 'short'?)"),
        ("bare.py:", "no function ''"),
        ("bare.py:__file__", "no function '__file__'"),
        ("bare.py:number", "reward 'number' of plugin 'bare' is not a function but 3 (int)"),
        ("bare.py:stars", "by position"),
    ],
)
def test_a_function_of_a_file_that_cannot_be_used_is_exit_5(tmp_path, monkeypatch, reference, said):
    write(tmp_path, "bare", "number = 3\ndef short(completions): ...\ndef stars(*completions): ...")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError) as error:
        loaded().find("reward", reference)
    refusal(error.value, 5, said)


# ---- entry points: a fault is one warning -----------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes installed distributions: a folder on sys.path with modules and their dist-info."""
    monkeypatch.delenv("MINIRLHF_LOAD_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def install(distribution, name, source, module=None):
        module = module or name
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[minirlhf]\n{name} = {module}\n")
        write(tmp_path, module.partition(":")[0], source)
        made.append(module.partition(":")[0])

    yield install
    for module in made:
        sys.modules.pop(module, None)


GOOD = """
    def {0}(completions): return [0.0]

    @hookimpl
    def register_reward_models(): return {{"{0}": {0}}}
"""


def installed_rewards():
    registry = load_plugins()
    return rewards(registry), registry.warnings


def test_an_entry_point_is_loaded(installed):
    installed("minirlhf-emoji", "emoji_reward", GOOD.format("emoji"))
    assert installed_rewards() == ({"emoji_reward:emoji"}, [])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_there_at_all", "ModuleNotFoundError"),
        ("raise SystemExit", "SystemExit"),
        ("@hookimpl\ndef register_reward_model(): return {}", "unknown hook 'register_reward_model'"),
        ("@hookimpl\ndef register_reward_models(x): return {}", "wrong hook"),
        (GOOD.format("good") + "\n    @hookimpl\n    def register_losses(): return {}", "unknown hook"),
    ],
)
def test_a_broken_entry_point_is_one_warning_and_the_others_work(installed, source, said):
    installed("minirlhf-a", "good_one", GOOD.format("a"))
    installed("minirlhf-broken", "middle_one", source)
    installed("minirlhf-z", "other_one", GOOD.format("z"))
    found, warnings = installed_rewards()
    assert found == {"good_one:a", "other_one:z"}
    (warning,) = warnings
    assert "plugin 'middle_one' of minirlhf-broken is left out" in warning
    assert said in warning
    assert "\n" not in warning


def test_an_entry_point_that_cannot_even_be_parsed_is_one_warning(installed):
    installed("minirlhf-a", "good_one", GOOD.format("a"))
    installed("minirlhf-b", "odd_one", "x = 1", module="odd_one:no such thing")
    found, warnings = installed_rewards()
    assert found == {"good_one:a"}
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("", set()),
        ("  ", set()),
        ("one", {"one:a"}),
        ("minirlhf-b", {"two:b"}),
        ("one, minirlhf-b", {"one:a", "two:b"}),
        ("other", set()),
    ],
)
def test_the_environment_limits_entry_points(installed, monkeypatch, variable, found):
    installed("minirlhf-a", "one", GOOD.format("a"))
    installed("minirlhf-b", "two", GOOD.format("b"))
    monkeypatch.setenv("MINIRLHF_LOAD_PLUGINS", variable)
    assert installed_rewards() == (found, [])


def test_naming_an_installed_plugin_makes_its_faults_errors(installed):
    installed("minirlhf-broken", "middle_one", "import not_there_at_all")
    with pytest.raises(PluginError) as error:
        load_plugins(["middle_one"])
    refusal(error.value, 5, "plugin 'middle_one' raised ModuleNotFoundError", "middle_one.py:2")


def test_a_plugin_both_installed_and_named_is_loaded_once(installed):
    installed("minirlhf-a", "one", GOOD.format("a"))
    registry = load_plugins(["one"])
    assert rewards(registry) == {"one:a"}
    assert registry.warnings == []


def test_an_entry_point_may_be_an_object(installed):
    source = """
        class Plugin:
            @hookimpl
            def register_reward_models(self): return {"o": lambda completions: [1.0]}
        plugin = Plugin()
    """
    installed("minirlhf-o", "obj", source, module="obj_module:plugin")
    assert installed_rewards() == ({"obj:o"}, [])


def test_no_entry_point_of_this_machine_reaches_the_tests():
    assert importlib.metadata.entry_points(group="no-such-group") == ()
    assert load_plugins().warnings == []
    assert isinstance(load_plugins(), Registry)
