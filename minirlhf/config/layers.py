"""Layers of a configuration: defaults, preset or file, options and `--set` become one Config.

Later layers win: the defaults of schema.py (exactly the preset `reviews`), then the keys of a preset or file, then
options such as `--kl`, then `--set key=value`. A layer that chooses another component drops the options that lower
layers gave to the old one. A file that has [rewards] replaces the set of rewards, and so does `--reward`, which keeps
the options that the file gave to equal labels.

All faults are found in one go (ConfigError), each with its dotted path, its value, its source and the nearest name. Not
here: the models (schema.py), checks across fields (faults.py), TOML (toml.py).
"""

import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minirlhf.components import registry as plugin_registry
from minirlhf.components.component import KINDS
from minirlhf.components.registry import Registry
from minirlhf.config.faults import FILTERS, component_faults, cross_faults, known_keys, pairing_faults, shown, unusable
from minirlhf.config.paths import absolute_paths, placed_component, placed_plugin
from minirlhf.config.schema import (
    CHOOSERS,
    AdvantageConfig,
    ComponentSection,
    Config,
    KLConfig,
    LossConfig,
    RewardConfig,
)
from minirlhf.config.toml import preset_text, read_file
from minirlhf.config.values import advice, setting, toml_value
from minirlhf.errors import ConfigError, nearest
from minirlhf.exact.problems import problems
from minirlhf.text.files import unmarked

COMPONENT_SECTIONS: dict[str, type[ComponentSection]] = {
    "kl": KLConfig,
    "advantage": AdvantageConfig,
    "loss": LossConfig,
    "rewards": RewardConfig,
}
# Keys of a component section that are the section's own; all others are options of its component.
OWN_KEYS = {name: set(section.model_fields) - {"options"} for name, section in COMPONENT_SECTIONS.items()}


def load_config(
    preset_or_file: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    rewards: Sequence[str] = (),
    plugins: Sequence[str] = (),
    kinds: Collection[str] = KINDS,
    registry_loader: Callable[[Sequence[str]], Registry] = plugin_registry.load_plugins,
) -> tuple[Config, Registry]:
    """Build the Config and load the plugins.

    Order: defaults < preset or file < options (dotted key -> value) < sets ("key=value").
    kinds: those of the components that are used; others are not looked up, and without any no plugin is loaded.
    Raises ConfigError with every fault, UsageError for a preset that does not exist, PluginError from a plugin.
    """
    draft = Draft()
    first = preset_or_file or "reviews"
    if first.endswith(".toml"):
        draft.add(read_file(Path(first)), first, Path(first).absolute().parent)
        draft.name(Path(first).stem)
    else:
        draft.add(tomllib.loads(preset_text(first)), f"preset {first}", Path.cwd())
        draft.name(first)
    cwd = Path.cwd()
    if rewards:
        draft.choose_rewards(rewards, cwd)
    for key, value in (options or {}).items():
        draft.add(nested(key, value), option_name(key), cwd)
    for text in sets:
        found = setting(text)
        if found is None:
            draft.faults.append(f"--set {shown(text)}: expected key=value, such as ppo.lr=1e-3")
            continue
        draft.typed[found[0]] = unmarked(text).partition("=")[2].strip()
        draft.add(nested(*found), "--set", cwd)
    draft.add_plugins(plugins, cwd)
    draft.settle(cwd)
    registry = registry_loader(draft.plugin_names() if kinds else ())
    return draft.finish(registry, kinds), registry


class Draft:
    """Layers on their way to a Config: nested dicts, the source of each value, and the faults so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}  # dotted path -> the layer that set it
        self.typed: dict[str, str] = {}  # dotted path -> the text of its `--set`
        self.faults: list[str] = []

    def name(self, stem: str) -> None:
        """Name the run after the preset or file, unless a layer names it."""
        run = self.values.setdefault("run", {})
        if isinstance(run, dict):
            run.setdefault("preset", re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64] or "run")

    def add(self, layer: dict[str, Any], source: str, folder: Path) -> None:
        """Put a layer on top; paths in it are relative to `folder`."""
        if not self._usable(layer, source):
            return
        layer = absolute_paths(layer, folder)
        if isinstance(layer.get("rewards"), dict) and source.endswith(".toml") | source.startswith("preset "):
            self.values.pop("rewards", None)
        for path, value in leaf_values(layer):
            self._drop_options(path, value)
            section, blocked = self._descend(path[:-1])
            if blocked:
                self.faults.append(f"{'.'.join(path)} = {shown(value)} ({source}): {blocked} is a value, not a section")
                continue
            section[path[-1]] = value
            self.origin[".".join(path)] = source

    def choose_rewards(self, chosen: Sequence[str], folder: Path) -> None:
        """Apply `--reward LABEL[=WEIGHT]`: this set and no other; a label that existed keeps its options."""
        before = self.values.get("rewards")
        before = before if isinstance(before, dict) else {}
        self.values["rewards"] = {}
        for text in (text for text in chosen if self._usable({text: text}, "--reward")):
            use, weight = split_weight(text)
            label, use = use.rpartition(":")[2], placed_component(use, lambda path: str(folder / path))
            if label in self.values["rewards"]:
                self.faults.append(f"--reward {text}: label {label!r} is given twice; name them in a file instead")
            old = before.get(label, {})
            same = isinstance(old, dict) and use in (label, old.get("use", label))
            from_flag = {} if use == label else {"use": use}
            from_flag |= {} if weight is None else {"weight": weight}
            self.values["rewards"][label] = (dict(old) if same else {}) | from_flag
            self.origin |= {f"rewards.{label}{key}": "--reward" for key in ("", *(f".{name}" for name in from_flag))}

    def settle(self, cwd: Path) -> None:
        """Fill in defaults that depend on other values: the folder of bases, and the settings of a problem."""
        run = self.values.get("run")
        if isinstance(run, dict):
            run.setdefault("bases", str(cwd / "runs" / "bases"))
        model, ppo = self.values.get("model"), self.values.setdefault("ppo", {})
        if isinstance(model, dict) and "dtype" in model and isinstance(ppo, dict):
            ppo.setdefault("precision", model["dtype"])  # the precision of a backbone is that of what reads it
        exact = self.values.get("exact")
        name = exact.get("problem") if isinstance(exact, dict) else None
        # A problem sets its own rewards, beta and sampling, unless a layer does.
        if isinstance(name, str) and name in problems():
            problem = problems()[name]
            self.values.setdefault("rewards", {"problem": {}})
            sampling = {"temperature": 1.0, "max_new_tokens": problem.horizon}
            for section, values in {"kl": {"coef": problem.beta}, "sampler": sampling}.items():
                present = self.values.setdefault(section, {})
                if isinstance(present, dict):
                    present |= {key: value for key, value in values.items() if key not in present}

    def add_plugins(self, names: Sequence[str], folder: Path) -> None:
        """Append plugins given by `--plugin` to those of the file."""
        present = self.values.get("plugins", [])
        if names and isinstance(present, list) and self._usable({"plugins": list(names)}, "--plugin"):
            self.values["plugins"] = [*present, *(placed_plugin(n, lambda path: str(folder / path)) for n in names)]

    def plugin_names(self) -> list[str]:
        """Plugins to load; what is no string is left for validation to refuse."""
        names = self.values.get("plugins", [])
        return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []

    def finish(self, registry: Registry, kinds: Collection[str]) -> Config:
        """Validate everything at once, components of these kinds alone; ConfigError with every fault."""
        config = None
        # Layers are checked one by one: what is still unusable is the name of the folder that a path was joined to.
        folders = [self._at(path, reason) for path, reason in unusable(self.values)]
        self.faults += folders
        try:
            if not folders:
                config = Config.model_validate_json(json.dumps(self._split(), default=str))
        except ValidationError as faults:
            self.faults += [self._fault(dict(fault)) for fault in faults.errors(include_url=False)]
        unknown = [self._at(path, reason) for path, reason in component_faults(self._split(), registry, kinds)]
        self.faults += unknown
        if config is not None:
            self.faults += [self._at(path, reason) for path, reason in cross_faults(config)]
            if not unknown and set(kinds) == set(KINDS):
                self.faults += [self._at(path, reason) for path, reason in pairing_faults(config, registry)]
        if self.faults or config is None:
            raise ConfigError(self.faults)
        return config

    def _usable(self, layer: dict[str, Any], source: str) -> bool:
        """True if a layer can be used; else False, with faults."""
        faults = [f"{path} ({source}): {reason}" for path, reason in unusable(layer)]
        self.faults += faults
        return not faults

    def _descend(self, path: Sequence[str]) -> tuple[dict[str, Any], str]:
        """(dict at a path, ""), created if missing; or ({}, dotted path of the value that stands in the way)."""
        section = self.values
        for depth, key in enumerate(path):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                return {}, ".".join(path[: depth + 1])
        return section, ""

    def _drop_options(self, path: Sequence[str], value: Any) -> None:
        """Drop the options of a component that is replaced by another one."""
        section, key = tuple(path[:-1]), path[-1]
        if section[:1] == ("rewards",) and len(section) == 2 and key == "use":
            own, rewards = OWN_KEYS["rewards"], self.values.get("rewards", {})
            old = rewards.get(section[1]) if isinstance(rewards, dict) else None
        elif len(section) == 1 and CHOOSERS.get(section[0]) == key:
            own, old = OWN_KEYS[section[0]], self.values.get(section[0])
        else:
            return
        if isinstance(old, dict) and old.get(key) != value:
            for option in [name for name in old if name not in own]:
                del old[option]

    def _split(self) -> dict[str, Any]:
        """Values with the options of components under `options`, and with the `use` of each reward filled in."""
        out = dict(self.values)
        for name in CHOOSERS:
            if isinstance(out.get(name), dict):
                out[name] = with_options(out[name], OWN_KEYS[name])
        if isinstance(out.get("rewards"), dict):
            out["rewards"] = {
                label: with_options({"use": label, **reward}, OWN_KEYS["rewards"])
                if isinstance(reward, dict)
                else reward
                for label, reward in out["rewards"].items()
            }
        return out

    def _at(self, path: str, reason: str) -> str:
        """Fault as `PATH (source): REASON; ADVICE`; the path may be followed by ` = value`."""
        key = path.partition(" = ")[0]
        source = self.origin.get(key) or self.origin.get(key.rpartition(".")[0]) or ""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        todo = advice(key, value, reason, source, self.typed.get(key, ""))
        return f"{path}{f' ({source})' if source else ''}: {reason}{todo}"

    def _fault(self, fault: dict[str, Any]) -> str:
        """Fault of pydantic as one of our messages."""
        path, value = ".".join(str(part) for part in fault["loc"]), fault.get("input")
        reason = str(fault["msg"])
        reason = reason[0].lower() + reason[1:]
        kind = str(fault["type"])
        if kind == "extra_forbidden":
            section, key = fault["loc"][:-1], str(fault["loc"][-1])
            if section == ("sampler",) and key in FILTERS:
                reason = (
                    "a run samples from the policy itself, because a token outside such a cut has probability 0 in "
                    "sampling and not in the loss; use it with `minirlhf sample`"
                )
            else:
                reason = f"there is no such key{nearest(key, known_keys(section))}"
        return self._at(f"{path} = {shown(value)}", reason)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Nested dict of a dotted key: `a.b`, 1 -> {"a": {"b": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def leaf_values(layer: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) of everything that is no table; an empty table counts as a value, so that it exists."""
    for key, value in layer.items():
        if isinstance(value, dict) and value:
            yield from leaf_values(value, (*path, key))
        else:
            yield (*path, key), value


def with_options(section: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Own keys of a section, and all others under `options`."""
    fixed = {k: v for k, v in section.items() if k in own}
    return {**fixed, "options": {k: v for k, v in section.items() if k not in own}}


def option_name(key: str) -> str:
    """Flag that sets a key, for messages."""
    flags = {
        "model.path": "--model",
        "kl.estimator": "--kl",
        "advantage.function": "--advantage",
        "loss.policy": "--loss",
    }
    return flags.get(key, f"--{key.rpartition('.')[2]}")


def split_weight(text: str) -> tuple[str, Any]:
    """LABEL[=WEIGHT] -> (label, weight or None); a weight that is no number is left for validation to refuse."""
    use, equals, weight = unmarked(text).rpartition("=")
    return (use.strip(), toml_value(weight)) if equals else (weight, None)
