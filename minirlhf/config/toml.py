"""Configurations as TOML and as JSON Schema: reading files and presets, writing a config that can be run again.

Not here: joining layers (layers.py), values that are typed (values.py) and checking them (schema.py, faults.py).
"""

import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from minirlhf.config.paths import relative_paths
from minirlhf.config.schema import CHOOSERS, Config
from minirlhf.config.values import parsed, respelled
from minirlhf.errors import ConfigError, UsageError, nearest
from minirlhf.text.files import unmarked

MAX_BYTES = 1 << 20  # a larger file is no config but given by mistake


def to_dict(config: Config) -> dict[str, Any]:
    """Config as a file has it: options among the keys of their section, keys without a value left out."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    for section in [*(plain[name] for name in CHOOSERS), *plain["rewards"].values()]:
        section.update(section.pop("options"))
    cleaned: dict[str, Any] = _without_none(plain)
    return cleaned


def dump_toml(config: Config, folder: Path | None = None) -> str:
    """Config as TOML that loads back to an equal one; folder: where it will lie, to which paths in it are relative."""
    plain = to_dict(config)
    return tomli_w.dumps(plain if folder is None else relative_paths(plain, folder))


def json_schema() -> dict[str, Any]:
    """JSON Schema of a file; keys of a component section that are not its own are its component's options."""
    schema = Config.model_json_schema()
    for definition in schema["$defs"].values():
        if "options" in definition["properties"]:
            del definition["properties"]["options"]
            definition["additionalProperties"] = True
        definition["required"] = []
    schema["properties"]["rewards"].pop("default", None)
    return schema


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def preset_names() -> list[str]:
    """Names of the presets that come with the program."""
    folder = resources.files("minirlhf") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """TOML of a preset; UsageError with the nearest name if it does not exist."""
    if name not in preset_names():
        raise UsageError(
            f"unknown preset {name!r}{nearest(name, preset_names())}",
            todo=f"choose from {', '.join(preset_names())}, or give a file that ends in .toml",
        )
    return (resources.files("minirlhf") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested dicts; ConfigError with file and line if it is none."""
    try:
        if not path.is_file():
            raise ConfigError([f"{path}: no such file" if not path.exists() else f"{path}: not a regular file"])
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path}: {path.stat().st_size} bytes; a config has at most {MAX_BYTES}"])
        text = unmarked(path.read_bytes().decode("utf-8"))
        return tomllib.loads(text)
    except OSError as fault:
        raise ConfigError([f"{path}: cannot be read ({fault.strerror})"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text; save it as UTF-8"]) from None
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError([f"{path}: not TOML: {fault}{_line_advice(text, str(fault))}"]) from None
    except (RecursionError, ValueError) as fault:
        raise ConfigError([f"{path}: not TOML: {type(fault).__name__}"]) from None


def _line_advice(text: str, fault: str) -> str:
    """`; write KEY = VALUE` for a line that holds a number or a boolean as TOML does not write it."""
    at = re.search(r"at line (\d+)", fault)
    key, _, value = text.split("\n")[int(at[1]) - 1].partition("=") if at else ("", "", "")
    value = value.partition("#")[0].strip()
    if not value or parsed(value) is not None:
        return ""
    written = respelled(value, "number") or respelled(value, "boolean")
    return f"; write {key.strip()} = {written}" if written else ""
