"""Plugin files as modules that other processes can import, too.

The name of such a module holds the path of its file. A pool of `spawn` or `forkserver` sends its workers functions by
the name of their module; a worker that could not import it would end, and the pool would wait for its result for ever.
This module counts as the package of these modules. Not here: what a plugin file registers (registry.py).
"""

import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

__path__: list[str] = []  # makes it a package; its modules are found by PluginFiles


def module_spec(path: Path) -> ModuleSpec:
    """Spec of a new module of a plugin file: `minirlhf.components.plugin_file.STEM_N_` and its path in hex.

    N: a file that is run again, by another registry, becomes another module; pickle takes a function for that of its
    module's name only if it is the same object.
    """
    stem, place = re.sub(r"[^A-Za-z0-9_]", "_", path.stem), os.fsencode(path).hex()
    names = (f"{__name__}.{stem}_{n}_{place}" for n in itertools.count(1))
    return _named(next(name for name in names if name not in sys.modules), path)


def _named(name: str, path: Path) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location(name, path, loader=FromSource(name, str(path)))
    assert spec is not None  # there is a loader
    return spec


class FromSource(SourceFileLoader):
    """Loader that compiles the source each time: no bytecode is read or left behind."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(Path(self.path).read_bytes(), self.path, "exec", dont_inherit=True)
        return code


class PluginFiles(MetaPathFinder):
    """Finder of plugin files by the names that `module_spec` gave them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of a module of this package; None for every other name."""
        if not re.fullmatch(re.escape(__name__) + r"\.\w*_([0-9a-f]{2})+", fullname):
            return None
        return _named(fullname, Path(os.fsdecode(bytes.fromhex(fullname.rpartition("_")[2]))))


sys.meta_path.append(PluginFiles())
