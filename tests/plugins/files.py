"""Plugin files for tests: write them, load them, and check the form of a refusal."""

from pathlib import Path
from textwrap import dedent

from minirlhf.components.component import Built
from minirlhf.components.registry import Registry, load_plugins
from minirlhf.components.signature import read_component
from minirlhf.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "plugins"
HEADER = "from minirlhf import hookimpl\n"


def write(folder: Path, name: str, source: str) -> str:
    """Write a plugin file of this source (dedented), with hookimpl imported; returns its path."""
    path = folder / f"{name}.py"
    path.write_text(HEADER + dedent(source), encoding="utf-8")
    return str(path.resolve())


ZEROS = "return [0.0] * len(completions)"


def reward_plugin(folder: Path, name: str, body: str = ZEROS) -> str:
    """Write a plugin with one reward of the file's name; `body` is the function's body, `completions` its input."""
    source = f"""
        def {name}(completions):
            {body}

        @hookimpl
        def register_reward_models():
            return {{"{name}": {name}}}
    """
    return write(folder, name, source)


def example(name: str) -> Registry:
    """Load the built-ins and one plugin of plugins/."""
    return load_plugins([str(EXAMPLES / f"{name}.py")], entry_points=False)


def built(kind: str, fn: object, **options: object) -> Built:
    """Build a component of a plugin `p`."""
    return read_component(kind, "it", "p", "p.py", fn).build(options)


def refusal(error: UserError, code: int, *parts: str) -> str:
    """Assert that an error is one line, has this exit code and contains each part; returns the line."""
    text = str(error)
    assert error.exit_code == code
    assert "\n" not in text
    for part in parts:
        assert part in text, f"{part!r} is not in: {text}"
    return text
