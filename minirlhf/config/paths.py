"""Paths in a configuration file, made absolute: relative to the folder of that file, with `~` for the user's home.

Not here: whether a path exists; its reader says so.
"""

import os
from pathlib import Path
from typing import Any

from minirlhf.config.schema import CHOOSERS
from minirlhf.text.files import is_packaged

PATHS = ("text", "prompts", "heldout_prompts", "demonstrations", "preferences")  # of [corpus]


def absolute_path(path: str, folder: Path) -> str:
    """Path as seen from `folder`, `~` expanded: behind `=` the shell leaves that to us."""
    return str(folder / os.path.expanduser(path))


def absolute_paths(layer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Layer with every relative path made absolute; bare corpus names and module names stay."""
    out = dict(layer)
    if isinstance(out.get("corpus"), dict):
        out["corpus"] = {
            k: absolute_path(v, folder) if k in PATHS and isinstance(v, str) and v and not is_packaged(v) else v
            for k, v in out["corpus"].items()
        }
    if isinstance(out.get("run"), dict):
        out["run"] = absolute_run(out["run"], folder)
    if isinstance(out.get("plugins"), list):
        out["plugins"] = [absolute_plugin(name, folder) if isinstance(name, str) else name for name in out["plugins"]]
    for section, key in CHOOSERS.items():
        if isinstance(out.get(section), dict) and isinstance(out[section].get(key), str):
            out[section] = {**out[section], key: absolute_component(out[section][key], folder)}
    if isinstance(out.get("rewards"), dict):
        out["rewards"] = {label: absolute_reward(label, reward, folder) for label, reward in out["rewards"].items()}
    return out


def absolute_reward(label: str, reward: Any, folder: Path) -> Any:
    """Reward with the file of FILE.py:FUNCTION, or the directory of a trained model, made absolute."""
    if not isinstance(reward, dict):
        return reward
    out = dict(reward)
    if isinstance(out.get("use"), str):
        out["use"] = absolute_component(out["use"], folder)
    if out.get("use", label) == "trained" and isinstance(out.get("path"), str):
        out["path"] = absolute_path(out["path"], folder)
    return out


def absolute_run(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Section [run] with the folder of bases, and observers given as FILE.py:CLASS, made absolute."""
    out = dict(run)
    if isinstance(out.get("bases"), str) and out["bases"]:
        out["bases"] = absolute_path(out["bases"], folder)
    if isinstance(out.get("observers"), list):
        out["observers"] = [absolute_component(n, folder) if isinstance(n, str) else n for n in out["observers"]]
    return out


def absolute_plugin(name: str, folder: Path) -> str:
    """Plugin FILE made absolute; a module name as it is."""
    return absolute_path(name, folder) if name.endswith(".py") or "/" in name else name


def absolute_component(name: str, folder: Path) -> str:
    """FILE.py:FUNCTION with its file made absolute; any other name as it is."""
    file, _, function = name.rpartition(":")
    return f"{absolute_path(file, folder)}:{function}" if file.endswith(".py") else name
