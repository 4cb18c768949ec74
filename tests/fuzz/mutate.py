"""Files as nobody wrote them: bytes and JSON changed at random, from a seed."""

import copy
import math
from pathlib import Path
from random import Random
from typing import Any

STRANGE = (
    None, True, False, 0, 1, -1, 3, 1 << 62, 10**400, -(10**30), 0.5, 1e308, -0.0, math.nan, math.inf, "", "x", "é",
    "\0", "\n", "a" * 300, "../..", "/etc/passwd", "~", "1e-4", "null", "<bos>", "\ud800", [], {}, [[]], [1, 2],
    ["a", None], {"a": 1}, {"": {}}, [[[[[[]]]]]],
)  # fmt: skip


def put(path: Path, content: bytes) -> None:
    """Write a file anew. One that is cut to nothing and filled again waits for the disk: 3 ms each on ext4."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def bytes_of(content: bytes, random: Random) -> bytes:
    """The content with one thing done to it that changes it."""
    kind = random.choice(["flip", "flip", "flip", "cut", "grow", "zero", "splice", "drop", "double", "junk"])
    at = random.randrange(len(content)) if content else 0
    more = random.randrange(1, 64)
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :]
    if kind == "cut" and content:
        return content[:at]
    if kind == "zero" and any(content[at : at + more]):
        return content[:at] + bytes(len(content[at : at + more])) + content[at + more :]
    if kind == "splice" and len(content) > 8:
        there = random.randrange(len(content))
        moved = content[:at] + content[there : there + more] + content[at + more :]
        return moved if moved != content else content + b"\0"
    if kind == "drop" and len(content) > more:
        return content[:at] + content[at + more :]
    if kind == "double" and content:
        return content + content
    if kind == "junk":
        return random.randbytes(more)
    return content + random.randbytes(more)


def json_of(value: Any, random: Random) -> Any:
    """The value with one to three places in it replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 3)):
        holder, key = random.choice(list(places(value)) or [([value], 0)])
        what = random.choice(["replace", "replace", "remove", "rename", "swap"])
        if what == "remove":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[random.choice(["", "x", f"{key}s", str(key).upper()])] = holder.pop(key)
        elif what == "swap" and (all_of := list(places(value))):
            there, other = random.choice(all_of)
            holder[key] = copy.deepcopy(there[other])
        else:
            holder[key] = copy.deepcopy(random.choice(STRANGE))
    return value


def places(value: Any):
    """(container, key) of everything in nested lists and dictionaries; of long ones, a few."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, inner in items[:12] + items[-12:] if len(items) > 24 else items:
        yield value, key
        yield from places(inner)
