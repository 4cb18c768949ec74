"""Values as people type them: read from the command line, and how one that was refused is written instead.

`KEY=VALUE` is read as TOML, and `.5` and `1.` as the numbers that they are; anything else is text. Not here: files
(toml.py), and which values a key accepts (schema.py).
"""

import json
import re
import shlex
import tomllib
import unicodedata
from typing import Any

from minirlhf.text.files import unmarked

_SHORT = re.compile(r"([+-]?)(\d[\d_]*)?\.(\d[\d_]*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)  # numbers in short
_DURATION = re.compile(r"([\d.]+)\s*(ms|s|sec|m|min|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), "true"), **dict.fromkeys(("false", "no", "off", "0"), "false")}


def toml_value(text: str) -> Any:
    """Value of a text as TOML, or as a number in short (`.5`, `1.`); the text itself, stripped, if it is neither."""
    text = unmarked(text).strip()
    short = _SHORT.fullmatch(text)
    whole = f"{short[1]}{short[2] or 0}.{short[3] or 0}{short[4] or ''}" if short and (short[2] or short[3]) else text
    value = parsed(whole)
    return value if isinstance(value, bool | int | float | str | list | dict) else text  # a date may be a folder's name


def parsed(text: str) -> Any:
    """Value of a text as TOML, None if it is no TOML."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return None
    return table["value"] if table.keys() == {"value"} else None


def setting(text: str) -> tuple[str, Any] | None:
    """(dotted key, value) of `KEY=VALUE`; None if it is not of this form."""
    key, equals, value = unmarked(text).partition("=")
    key = key.strip()
    return (key, toml_value(value)) if equals and all(key.split(".")) else None


def advice(key: str, value: Any, reason: str, source: str, typed: str = "") -> str:
    """`; write ...` after the reason why a value is refused, if it is of the wrong type and the right one is plain.

    source: the layer that set it; after `--set` the whole option is shown, safe from the shell. typed: the text that
    stood there.
    """
    kind = re.search(r"valid (number|integer|boolean|string|list|tuple|array)", reason)
    if kind is None or value is None:  # None: an item of a list, which has no key of its own
        return ""
    if isinstance(value, str) and kind[1] in ("number", "integer", "boolean"):
        unquoted = parsed(value)
        if isinstance(unquoted, bool) if kind[1] == "boolean" else type(unquoted) in (int, float):
            return "; this is a string: remove the quotes"
    numbers = re.search(r"\b(int|float)\b", reason) is not None
    written = respelled(value, kind[1], seconds=key.endswith("_s"), numbers=numbers)
    if kind[1] == "string" and written and typed:
        written = json.dumps(typed, ensure_ascii=False)
    if written is None:
        return ""
    return f"; write --set {shlex.quote(f'{key}={written}')}" if source == "--set" else f"; write {written}"


def respelled(value: Any, kind: str, *, seconds: bool = False, numbers: bool = False) -> str | None:
    """TOML of what was meant by a value, as a number, integer, boolean, string or list; None if that is not plain.

    seconds: a duration such as 5m means so many seconds. numbers: a list is one of numbers, else it is one of strings.
    """
    if kind in ("number", "integer"):
        number = _meant_number(value, seconds)
        if kind == "integer" and isinstance(number, float):
            number = int(number) if number.is_integer() else None
        return None if number is None else repr(number)
    if kind == "boolean":
        return _BOOLEANS.get(str(value).strip().lower())
    if isinstance(value, dict) or (kind == "string" and isinstance(value, str | list)):
        return None
    if kind == "string":
        return f'"{json.dumps(value)}"'
    parts = [part.strip(" \"'") for part in str(value).strip("[]").split(",")]
    items = [_meant_number(part, seconds) for part in parts] if numbers else [part for part in parts if part]
    return None if None in items else json.dumps(items, ensure_ascii=False)


def _meant_number(value: Any, seconds: bool) -> int | float | None:
    """Finite number that a value means: `007`, `1,5`, full-width digits; None for anything else."""
    if isinstance(value, str):
        text = unicodedata.normalize("NFKC", value).replace("\u2212", "-").strip()
        duration = _DURATION.fullmatch(text) if seconds else None
        if duration:
            amount = _meant_number(duration[1], False)
            total = None if amount is None else float(amount * _SECONDS[duration[2]])
            return int(total) if total is not None and total.is_integer() else total
        text = re.sub(r"^([+-]?)0+(?=\d)", r"\1", text)
        if re.fullmatch(r"[+-]?\d+,(\d{1,2}|\d{4,})", text, re.ASCII):  # 1,000 would be 1 or 1000
            text = text.replace(",", ".")
        value = toml_value(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or value != value:
        return None
    return value
