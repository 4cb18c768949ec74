"""Registry of components: finding and loading the plugins that they come from.

A plugin comes from the package itself (BUILTINS, imported by name as anybody's plugin is), from a FILE or MODULE that
the user names, or from an entry point (group `minirlhf`); never from the current directory by itself. pluggy checks
hooks and collects components, once. Every plugin gets a fresh PluginManager: a broken one leaves nothing behind, and a
result is credited to the plugin that gave it (a shared manager returns results reversed, unnamed and without Nones).

A plugin that the user named fails for any fault. An entry point with a fault is left out with a warning, because a
package that somebody installed must not stop every command.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

import minirlhf
from minirlhf import PROJECT, hookspecs
from minirlhf.components.component import KINDS, NOUNS, Component
from minirlhf.components.guard import definition_place, isolated, naming
from minirlhf.components.plugin_file import FromSource, module_spec
from minirlhf.components.signature import read_component
from minirlhf.errors import PluginError, UsageError, nearest

BUILTINS = (
    "minirlhf.builtin.rewards",
    "minirlhf.builtin.kl",
    "minirlhf.builtin.advantages",
    "minirlhf.builtin.losses",
    "minirlhf.builtin.observers",
    "minirlhf.builtin.trained",
)
HOOKS = {
    "reward": "register_reward_models",
    "kl": "register_kl_estimators",
    "advantage": "register_advantage_functions",
    "loss": "register_policy_losses",
    "observer": "register_observers",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load_plugins(plugins: Sequence[str] = (), entry_points: bool = True) -> "Registry":
    """Load the built-ins, then the FILEs and MODULEs of `plugins`, then entry points.

    Nothing is kept between two loads. MINIRLHF_LOAD_PLUGINS, if set, lists the entry points or
    distributions to load (empty = none). Raises PluginError for any fault of a built-in or of what
    `plugins` names.
    """
    registry = Registry()
    for name in BUILTINS:
        registry.add(_imported(name), PROJECT, name, PROJECT, minirlhf.__version__)
    for named in plugins:
        if named.endswith(".py") or os.sep in named:
            registry.add_file(named)
        else:
            registry.add_module(named)
    for entry_point in _entry_points() if entry_points else ():
        registry.add_entry_point(entry_point)
    return registry


@dataclass(frozen=True)
class Plugin:
    """Plugin that was loaded, or could not be.

    version: of its package, else its `__version__`, else "". source: `package NAME`, or its file. fault: reason why it
    is left out, "" if it is loaded.
    """

    owner: str
    version: str
    source: str
    fault: str = ""


@dataclass
class Registry:
    """Components of one load, the plugins that they come from, and the warnings of loading."""

    components: list[Component] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _modules: dict[str, tuple[ModuleType, str]] = field(default_factory=dict)  # file -> (module, owner)
    _loaded: set[str] = field(default_factory=set)  # files (or modules) whose hooks have been read

    def find(self, kind: str, name: str) -> Component:
        """Find the component that NAME, OWNER:NAME or FILE.py:FUNCTION means.

        Raises UsageError for an unknown name (with the choices), PluginError for one that two plugins give
        and for any fault of FILE.py:FUNCTION.
        """
        file, _, function = name.rpartition(":")
        if file.endswith(".py"):
            return self._function(kind, file, function)
        known = [c for c in self.listing() if c.kind == kind]
        found = [c for c in known if name in (c.name, f"{c.owner}:{c.name}")]
        if len(found) > 1:
            raise PluginError(
                f"{NOUNS[kind]} {name!r} is given by two plugins",
                " and ".join(f"{c.owner!r} ({c.where})" for c in found),
                f"choose one: {' or '.join(f'{c.owner}:{c.name}' for c in found)}",
            )
        if not found:
            names = {c.name for c in known} | {f"{c.owner}:{c.name}" for c in known}
            choices = ", ".join(f"{c.name} ({c.owner})" for c in known) or "none"
            raise UsageError(
                f"unknown {NOUNS[kind]} {name!r}{nearest(name, sorted(names))}",
                todo=f"choose from {choices}, or name a function as FILE.py:FUNCTION",
            )
        return found[0]

    def listing(self) -> list[Component]:
        """All components, by kind, name and owner."""
        return sorted(self.components, key=lambda c: (KINDS.index(c.kind), c.name, c.owner))

    def plugin(self, owner: str, path: str) -> Plugin:
        """Plugin of a component's owner; a file whose functions are named without a hook counts as one."""
        return next((p for p in self.plugins if p.owner == owner), Plugin(owner, "", path))

    def add(self, plugin: Any, owner: str, path: str, package: str = "", version: str = "") -> None:
        """Collect a plugin's components; a plugin that was added before is skipped."""
        file = getattr(plugin, "__file__", None)
        source = str(Path(file).resolve()) if file else path
        if source in self._loaded:
            return
        self._loaded.add(source)
        self.components += collect(plugin, owner, source)
        if all(p.owner != owner for p in self.plugins):  # the built-ins are several modules
            version = version or getattr(plugin, "__version__", "")
            self.plugins.append(Plugin(owner, str(version), f"package {package}" if package else source))

    def add_module(self, name: str) -> None:
        """Load a plugin module that the user named."""
        module = _imported(name)
        self.add(module, self._owner(name, "module"), name)

    def add_file(self, file: str) -> None:
        """Load a plugin file that the user named."""
        if not Path(file).expanduser().is_file():
            todo = "give the path of a .py file; if a configuration names it: --set 'plugins=[\"FILE.py\"]'"
            raise PluginError(f"plugin {Path(file).stem!r} is not found", file, todo)
        module, owner = self._module(file)
        self.add(module, owner, str(module.__file__))

    def add_entry_point(self, entry_point: importlib.metadata.EntryPoint) -> None:
        """Load an installed plugin; for a fault, keep nothing of it and add one warning."""
        package, version = "an unknown distribution", ""
        if entry_point.dist:
            package, version = entry_point.dist.name, entry_point.dist.version
        origin = _origin(entry_point.value.partition(":")[0].strip())
        try:
            with isolated(), naming(f"plugin {entry_point.name!r}", origin, origin):
                plugin = entry_point.load()
            self.add(plugin, self._owner(entry_point.name, package), entry_point.value, package, version)
        except PluginError as fault:
            self.plugins.append(Plugin(entry_point.name, version, f"package {package}", str(fault)))
            self.warnings.append(f"plugin {entry_point.name!r} of {package} is left out: {fault}")

    def _function(self, kind: str, file: str, name: str) -> Component:
        """Component for FILE.py:FUNCTION, which needs no hook."""
        module, owner = self._module(file)
        path = str(module.__file__)
        if not hasattr(module, name) or name.startswith("__"):
            functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            what = f"plugin {owner!r} has no function {name!r}{nearest(name, functions)}"
            raise PluginError(what, path, f"it has {', '.join(functions) or 'none'}")
        return read_component(kind, name, owner, path, getattr(module, name))

    def _module(self, file: str) -> tuple[ModuleType, str]:
        """Module of a plugin file, run once a registry, and its owner: the stem of the file."""
        path = Path(file).expanduser().resolve()
        if str(path) not in self._modules:
            owner = self._owner(path.stem, path.parent.name)
            self._modules[str(path)] = _run_file(path, owner), owner
        return self._modules[str(path)]

    def _owner(self, name: str, place: str) -> str:
        """Owner name that is not taken: `name`, else `place/name`."""
        taken = {c.owner for c in self.components} | {owner for _, owner in self._modules.values()}
        candidates = [name, f"{place}/{name}", *(f"{place}/{name}-{i}" for i in range(2, len(taken) + 3))]
        return next(c for c in candidates if c not in taken)


def collect(plugin: Any, owner: str, path: str) -> list[Component]:
    """Collect the components that a plugin's hooks register. Raises PluginError for any fault, or if there are none."""
    title = f"plugin {owner!r}"
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=owner)
        manager.check_pending()  # without it, an unknown hook would be ignored silently
    except pluggy.PluginValidationError as fault:
        raise _hook_fault(manager, str(fault), title, path) from None
    _check_marks(plugin, title, path)
    components: list[Component] = []
    for kind, hook in HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            where = definition_place(implementation.function, path)
            with isolated(), naming(f"{hook} of {title}", where, path):
                result = implementation.function()
            components += _components_of(result, kind, owner, path, where)
    if not components:
        todo = "return {name: function} from a @hookimpl function such as register_reward_models"
        raise PluginError(f"{title} registers nothing", path, f"{todo}, or name one as FILE.py:FUNCTION")
    return components


def _hook_fault(manager: pluggy.PluginManager, reason: str, title: str, path: str) -> PluginError:
    """PluginError for an unknown hook, with the nearest name, or with pluggy's own reason (an unknown argument)."""
    for name, caller in vars(manager.hook).items():
        if isinstance(caller, pluggy.HookCaller) and not caller.has_spec():
            where = definition_place(caller.get_hookimpls()[0].function, path)
            what = f"{title} has an unknown hook {name!r}{nearest(name, HOOKS.values())}"
            return PluginError(what, where, f"hooks are {', '.join(HOOKS.values())}")
    return PluginError(f"{title} has a wrong hook ({reason})", path, "these hooks take no arguments")


def _check_marks(plugin: Any, title: str, path: str) -> None:
    """Refuse a hook without @hookimpl: pluggy would ignore it silently."""
    for name, value in vars(plugin).items() if isinstance(plugin, ModuleType) else ():
        own = inspect.isfunction(value) and value.__module__ == plugin.__name__
        meant = own and name.startswith("register_") and nearest(name, HOOKS.values())
        if meant and not hasattr(value, f"{PROJECT}_impl"):
            raise PluginError(
                f"{title} has a hook {name!r} without its mark",
                definition_place(value, path),
                "decorate it with @hookimpl (from minirlhf import hookimpl)",
            )


def _components_of(result: Any, kind: str, owner: str, path: str, where: str) -> Iterator[Component]:
    """Read the components that one hook returned."""
    title = f"{HOOKS[kind]} of plugin {owner!r} returned"
    if not isinstance(result, Mapping):
        got = "None" if result is None else f"a {type(result).__name__}"
        raise PluginError(f"{title} {got} (expected a dict)", where, "return {name: function}")
    for name, obj in result.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            allowed = "letters, digits, '.', '_' and '-', at most 64, a letter or digit first"
            raise PluginError(f"{title} a bad name {name!r}", where, f"use {allowed}")
        yield read_component(kind, name, owner, path, obj)


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    """Entry points that MINIRLHF_LOAD_PLUGINS allows, sorted by name."""
    allowed = os.environ.get("MINIRLHF_LOAD_PLUGINS")
    found = sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda e: (e.name, e.value))
    if allowed is None:
        return found
    wanted = {name.strip() for name in allowed.split(",")}
    return [e for e in found if e.name in wanted or (e.dist and e.dist.name in wanted)]


def _run_file(path: Path, owner: str) -> ModuleType:
    """Run a plugin file as a module of its own name (plugin_file.py), from its source."""
    title = f"plugin {owner!r}"
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise PluginError(f"{title} is not found", str(path), "give the path of a .py file")
    if path.suffix != ".py":
        raise PluginError(f"{title} is not a Python file", str(path), "give the path of a .py file")
    spec = module_spec(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # before it runs: dataclasses look their module up
    try:
        with isolated(), naming(title, str(path), str(path)):
            FromSource(spec.name, str(path)).exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _imported(name: str) -> ModuleType:
    """Import a plugin module by its name."""
    title = f"plugin {name!r}"
    with isolated(), naming(title, name, _origin(name)):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as fault:
            if not (fault.name and f"{name}.".startswith(f"{fault.name}.")):
                raise  # the module is there; one that it imports is not
    raise PluginError(f"{title} is not found", todo="install it, or give the path of a .py file")


def _origin(module: str) -> str:
    """File of a module, as far as it can be known without running it; else the name."""
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # importing a parent package failed: loading it will say why
        return module
    return (spec and spec.origin) or module
