"""The house rules that only a test can keep: layers, lengths, docstrings, what is imported, no pickle."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minirlhf"
PLUGINS = Path(__file__).parents[1] / "plugins"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rows of the house, lowest first. A module may import from its own row and from those below it.
ROWS = (
    ("__init__", "errors", "hookspecs", "events", "signals", "streams", "tensors"),  # the ground
    ("text",),
    ("components",),
    ("models",),
    ("exact",),
    ("config",),
    ("rewards",),
    ("store",),
    ("builtin",),
    ("rl",),
    ("ppo",),
    ("stages",),
    ("report",),
    ("pipeline",),
    ("authoring", "testing"),
    ("studies",),
    ("cli", "__main__"),
)


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path):
    """minirlhf/store/model.py -> store.model; minirlhf/store/__init__.py -> store"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {dotted(path): path for path in FILES}


def imports(path, *, outside=False):
    """Modules that a file imports anywhere in it: of the package without its name, or (outside) of others."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            # `from minirlhf import registry` names a module, `from minirlhf import hookimpl` does not.
            found = [f"{module}.{a.name}" if f"{module}.{a.name}"[9:] in NAMES else module for a in node.names]
        else:
            continue
        for name in found:
            own = name == "minirlhf" or name.startswith("minirlhf.")
            if own and not outside:
                yield name[9:] or "__init__"
            elif not own and outside:
                yield name


def functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def room(name):
    return name.partition(".")[0]


def row(name):
    """Index of a module's row."""
    return next(index for index, rooms in enumerate(ROWS) if room(name) in rooms)


def test_every_module_has_a_room_and_every_room_exists():
    assert {room(name) for name in NAMES} == {name for rooms in ROWS for name in rooms}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_upward(name):
    upward = [other for other in imports(NAMES[name]) if row(other) > row(name)]
    assert upward == (["ppo"] if name == "store.checkpoint" else [])  # until checkpoints and progress share one codec


def test_the_loop_knows_neither_plugins_nor_files_nor_printing():
    path = NAMES["ppo"]
    own, others = set(imports(path)), {name.partition(".")[0] for name in imports(path, outside=True)}
    assert not {"components.registry", "hookspecs"} & own
    assert not {"store", "pipeline", "cli"} & {room(name) for name in own}
    assert not {"pluggy", "click", "rich", "pathlib", "os", "json", "logging"} & others
    calls = {n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not {"open", "print", "input"} & calls


def test_only_the_command_line_reads_arguments_and_only_it_prints():
    printing = set()
    for name, path in NAMES.items():
        names = {n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        if "print" in names or "click" in set(imports(path, outside=True)):
            printing.add(room(name))
    assert printing == {"cli"}


def test_importing_the_package_and_answering_help_needs_no_torch():
    code = (
        "import sys, minirlhf, minirlhf.hookspecs\n"
        "from minirlhf.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('heavy:', sorted({'torch', 'pydantic', 'numpy', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "pretrain" in done.stdout


# ---- size and words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_function_fits_a_screen(name):
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions(NAMES[name])}
    assert {function: lines for function, lines in lengths.items() if lines > 60} == {}


def test_the_body_of_the_loop_fits_a_screen():
    (train,) = [f for f in functions(NAMES["ppo"]) if f.name == "train"]
    (loop,) = [node for node in train.body if isinstance(node, ast.While)]
    assert loop.body[-1].end_lineno - loop.body[0].lineno + 1 <= 30


@pytest.mark.parametrize("name", [name for name, path in NAMES.items() if path.read_text(encoding="utf-8")])
def test_public_things_have_a_docstring(name):
    """Modules, functions and classes of a module. A function of one statement is its own description; a hook's
    stands in hookspecs.py, a section's of a configuration at its keys."""
    module = tree(NAMES[name])
    assert ast.get_docstring(module)
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        hook = any(isinstance(d, ast.Name) and d.id == "hookimpl" for d in node.decorator_list)
        small = not isinstance(node, ast.ClassDef) and len(node.body) == 1
        section = (
            isinstance(node, ast.ClassDef) and name == "config.schema" and node.name.endswith(("Config", "Section"))
        )
        assert ast.get_docstring(node) or hook or small or section, f"{name}.{node.name} has no docstring"


# ---- no code in data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*FILES, *sorted(PLUGINS.glob("*.py"))], ids=lambda path: path.stem)
def test_nothing_is_pickled(path):
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert not forbidden & {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in forbidden
            assert node.module != "torch" or not {"load", "save"} & {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save", "jit")
