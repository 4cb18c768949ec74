"""The contract on one screen: every hook documented with its inputs, nothing heavy imported."""

import ast
import inspect

import pytest

from minirlhf import hookspecs
from minirlhf.components import checks, component, guard, registry, signature
from minirlhf.components.component import INPUTS, OBSERVER_METHODS
from minirlhf.components.registry import HOOKS
from tests.plugins.files import EXAMPLES


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_documents_every_input_of_its_kind(kind):
    doc = inspect.getdoc(getattr(hookspecs, HOOKS[kind]))
    words = doc.replace("(", " ").replace(",", " ").replace(";", " ").replace("`", " ").split()
    names = INPUTS[kind] or OBSERVER_METHODS
    assert [name for name in names if name not in words] == []


@pytest.mark.parametrize("hook", HOOKS.values())
def test_every_hook_has_an_example(hook):
    assert [path for path in EXAMPLES.glob("*.py") if f"def {hook}():" in path.read_text(encoding="utf-8")]


def test_it_fits_a_screen():
    assert len(inspect.getsource(hookspecs).splitlines()) <= 66


@pytest.mark.parametrize("module", [hookspecs, checks, component, guard, registry, signature])
def test_torch_and_pydantic_are_not_imported_with_the_module(module):
    heavy = {"torch", "pydantic", "numpy"}
    for node in ast.parse(inspect.getsource(module)).body:  # module level; `if TYPE_CHECKING:` is not run
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not heavy & {name.partition(".")[0] for name in names}
