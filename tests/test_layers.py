"""Rules of the house that only a test can keep: rows, circles, sizes, names, docstrings, imports, lines, no pickle.

docs/architecture.md states them for people. A comment at the list of an exception says why it is one.
"""

import ast
import re
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
    ("__init__", "errors", "heap", "hookspecs", "events", "signals", "streams", "tensors"),  # the ground
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


@cache
def nodes(path):
    """Every node of a file, walked once for all the rules."""
    return tuple(ast.walk(tree(path)))


def dotted(path):
    """minirlhf/store/model.py -> store.model; minirlhf/store/__init__.py -> store"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {dotted(path): path for path in FILES}


def imports(path, *, outside=False):
    """Modules that a file imports anywhere in it: of the package without its name, or (outside) of others."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in nodes(path):
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
    return [n for n in nodes(path) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def room(name):
    return name.partition(".")[0]


def row(name):
    """Index of a module's row."""
    return next(index for index, rooms in enumerate(ROWS) if room(name) in rooms)


def test_every_module_has_a_room_and_every_room_exists():
    assert {room(name) for name in NAMES} == {name for rooms in ROWS for name in rooms}


GRAPH = {name: set(imports(path)) for name, path in NAMES.items()}  # lazy imports counted


def reached(name):
    """Modules that a module imports, directly or through others."""
    found, waiting = set(), [name]
    while waiting:
        new = GRAPH[waiting.pop()] - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_upward_not_through_others_either(name):
    assert sorted(other for other in reached(name) if row(other) > row(name)) == []


def test_no_import_circle():
    """Two modules that reach each other are one module in two files; an import inside a function hides it only."""
    assert sorted(name for name in NAMES if name in reached(name)) == []


def test_the_loop_loads_no_registry_no_command_line_and_no_toml_and_a_step_no_compiler():
    """In one process, since torch is a second and more: first the loop alone, then a step of the optimiser."""
    code = (
        "import sys, minirlhf.ppo\n"
        "print(sorted(name for name in sys.modules if name in sys.argv[1:]))\n"
        "import torch, minirlhf.pipeline.pipeline\n"
        "from minirlhf.models.optimizer import AdamW\n"
        "p = torch.nn.Parameter(torch.ones(3))\n"
        "optimizer = AdamW([p], lr=0.1)\n"
        "torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)\n"
        "p.sum().backward()\n"
        "optimizer.step()\n"
        "optimizer.zero_grad()\n"
        "print('torch._dynamo' in sys.modules, p[0].item() < 1)"
    )
    heavy = ["minirlhf.components.registry", "minirlhf.config.layers", "click", "tomli_w", "tomllib", "rich"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\nFalse True\n"


def test_the_root_holds_what_everybody_reads():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py"))[1:], ids=lambda path: path.parent.name)
def test_a_package_re_exports_nothing(path):
    (docstring,) = tree(path).body
    assert isinstance(docstring, ast.Expr)


def test_the_loop_knows_neither_plugins_nor_files_nor_printing():
    path = NAMES["ppo"]
    own, others = set(imports(path)), {name.partition(".")[0] for name in imports(path, outside=True)}
    assert not {"components.registry", "hookspecs"} & own
    assert not {"store", "pipeline", "cli"} & {room(name) for name in own}
    assert not {"pluggy", "click", "rich", "pathlib", "os", "json", "logging"} & others
    calls = {n.func.id for n in nodes(path) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not {"open", "print", "input"} & calls


def test_only_the_command_line_reads_arguments_and_only_it_prints():
    printing = set()
    for name, path in NAMES.items():
        names = {n.func.id for n in nodes(path) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
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
def test_a_module_has_one_noun_and_a_function_fits_a_screen(name):
    assert len(NAMES[name].read_text(encoding="utf-8").splitlines()) <= 360
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions(NAMES[name])}
    assert {function: lines for function, lines in lengths.items() if lines > 60} == {}


@pytest.mark.parametrize("name", [name for name in NAMES if room(name) != "cli"])  # options of a command are parameters
def test_a_function_has_seven_parameters_at_most(name):
    counts = {}
    for f in functions(NAMES[name]):
        a = f.args
        counts[f.name] = len([x for x in a.posonlyargs + a.args + a.kwonlyargs if x.arg not in ("self", "cls")])
    assert {f: count for f, count in counts.items() if count > 7 and f != "__init__"} == {}


# Names that several modules share on purpose: a command's function, a stage's generator, `python -m`'s entry.
SHARED = re.compile(r"command|train|main|register_\w+")


def test_a_name_is_one_thing():
    """Functions and classes at the top of a module, private ones too: whoever searches for one finds one."""
    places = {}
    for name, path in NAMES.items():
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {n: where for n, where in places.items() if len(where) > 1 and not SHARED.fullmatch(n)} == {}


def test_one_place_builds_what_components_see():
    """rl/terms.py has a dataclass for each kind of inputs: no module writes down a dictionary of them."""
    written = set()
    for name, path in NAMES.items():
        for node in nodes(path):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
                keys = {keyword.arg for keyword in node.keywords}
            else:
                continue
            if "ref_logprobs" in keys:
                written.add(name)
    assert written == set()


AFTERNOON = re.findall(
    r"^\| `([\w/]+\.py)` \|",
    (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## An afternoon")[2],
    flags=re.MULTILINE,
)


def test_the_afternoon_is_an_afternoon():
    assert len(AFTERNOON) >= 16
    assert "ppo.py" in AFTERNOON
    assert sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in AFTERNOON) <= 2600


def test_the_map_is_the_disk():
    """Every file of a row stands in the table of docs/architecture.md, and no other."""
    table = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8").partition("| row |")[2]
    rows = [line.split("|") for line in table.partition("\n\n")[0].splitlines()[2:]]
    told = {cells[1].strip(" `/"): set(re.findall(r"`([\w/]+)`", cells[3])) for cells in rows}
    for folder in ("text", "components", "models", "exact", "config", "rewards", "store", "builtin", "rl", "stages",
                   "report", "pipeline", "authoring", "studies"):  # fmt: skip
        files = {p.stem for p in (PACKAGE / folder).glob("*.py")} - {"__init__"}
        folders = {f"{p.name}/" for p in (PACKAGE / folder).iterdir() if (p / "__init__.py").exists()}
        assert told[folder] == files | folders, folder


def test_the_body_of_the_loop_fits_a_screen():
    (train,) = [f for f in functions(NAMES["ppo"]) if f.name == "train"]
    (loop,) = [node for node in train.body if isinstance(node, ast.While)]
    assert loop.body[-1].end_lineno - loop.body[0].lineno + 1 <= 30


OPENINGS = re.compile(r"(What|Where|Who|Whether|Of|How)\b")


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_begins_with_a_verb_or_a_noun(name):
    """A riddle begins with one of these words: what a thing is or does comes first."""
    for node in nodes(NAMES[name]):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert not OPENINGS.match(ast.get_docstring(node) or ""), getattr(node, "name", name)


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
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not forbidden & {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in forbidden
            assert node.module != "torch" or not {"load", "save"} & {alias.name for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("load", "save", "jit")


# ---- lines ------------------------------------------------------------------------------------------------


def test_lines_end_at_newlines_alone():
    """str.splitlines also ends them at U+2028, U+0085, form feeds and more, which may stand within a text."""
    files = [*FILES, *sorted(PLUGINS.glob("*.py"))]
    found = [(path, node) for path in files for node in nodes(path) if isinstance(node, ast.Attribute)]
    assert [f"{path}:{node.lineno}" for path, node in found if node.attr == "splitlines"] == []
