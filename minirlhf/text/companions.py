"""Files beside the vocabulary of somebody else's tokenizer: what they say, checked, before anything is made of it.

Not here: the order in which they decide, and the ids that follow (foreign.py).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from minirlhf.errors import InputError
from minirlhf.text.core import Added, check_whole
from minirlhf.text.files import parse_json
from minirlhf.text.tokenizer import FILE, Malformed

CONFIG: Final = "tokenizer_config.json"
TEMPLATE: Final = "chat_template.jinja"
OWN_FILES: Final = (FILE, CONFIG, "special_tokens_map.json", "generation_config.json", TEMPLATE)
LISTS: Final = ("additional_special_tokens", "extra_special_tokens")


def json_value(content: bytes, path: Path) -> Any:
    """Value of a JSON file (InputError)."""
    todo = "download the model again, or take another one"
    try:
        return parse_json(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as exc:
        raise InputError("file is not UTF-8", str(path), todo) from exc
    except InputError as fault:
        raise InputError(str(fault), todo=todo) from fault


def settings_of(files: Mapping[str, bytes], name: str, directory: Path) -> dict[str, Any]:
    """Object of an optional file, {} without it (InputError if it is no object)."""
    found = json_value(files[name], directory / name) if name in files else {}
    if not isinstance(found, dict):
        raise InputError("file is not a JSON object", str(directory / name), "mend it, or remove it")
    return found


def special_name(value: Any) -> str | None:
    """Name of a special token: a string, or an object with its content; None for anything else (Malformed)."""
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str) or not name:
        return None
    check_whole(name)
    return name


def added_tokens(data: Any, config: Mapping[str, Any], named: Iterable[str]) -> tuple[list[Added], list[Added]]:
    """Added tokens of tokenizer.json and tokenizer_config.json, and those of them in which the second differs.

    The second decides. Those that have a part, such as EOS, are special, whatever their flag says.
    """
    if not isinstance(data, dict) or not isinstance(data.get("added_tokens") or [], list):
        raise Malformed("added_tokens is not a list of objects")
    found = dict[int, Added]()
    for value in data.get("added_tokens") or []:
        entry = Added.of(value, value.get("id") if isinstance(value, dict) else None)
        if entry.token in found:
            raise Malformed(f"two added tokens have the id {entry.token}")
        found[entry.token] = entry
    more = config.get("added_tokens_decoder") or {}
    if not isinstance(more, dict) or not all(isinstance(key, str) and re.fullmatch(r"\d{1,10}", key) for key in more):
        raise Malformed(f"added_tokens_decoder of {CONFIG} is not an object of ids")
    decoder = {int(key): Added.of(value, int(key)) for key, value in more.items()}
    changed = [entry for token, entry in sorted(decoder.items()) if found.get(token) != entry]
    found |= decoder
    lists = [config.get(key) for key in LISTS]
    apart = {*named, *(name for some in lists if isinstance(some, list) for x in some if (name := special_name(x)))}
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    have = {entry.content for entry in found.values()}
    for name in sorted(apart - have):
        token = vocab.get(name) if isinstance(vocab, dict) else None
        if type(token) is int:
            found[token] = Added(token, name, special=True, normalized=False)
    return [Added(**(vars(a) | {"special": a.special or a.content in apart})) for a in found.values()], changed


def names_around(data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the special tokens that the post-processor puts in front of a text and behind it (Malformed)."""
    post = data.get("post_processor")
    if post is None:
        return [], []
    steps = post.get("processors", [post]) if isinstance(post, dict) else None
    if not isinstance(steps, list):
        raise Malformed("post_processor is not an object, or a sequence without steps")
    front, back = list[str](), list[str]()
    for step in steps:
        single = step.get("single", []) if isinstance(step, dict) else None
        if not isinstance(single, list):
            raise Malformed("a step of post_processor is not an object, or what it puts together is not a list")
        side = front
        for entry in single:
            if not isinstance(entry, dict) or "SpecialToken" not in entry:
                side = back  # the text itself
                continue
            token = entry["SpecialToken"]
            name = token.get("id") if isinstance(token, dict) else None
            if not isinstance(name, str):
                raise Malformed("the post-processor adds a special token without a name")
            side.append(name)
    return front, back


def template_source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """Source of the chat template: its own file, else the setting, of several named ones the default.

    Bytes that are not UTF-8 become halves of surrogate pairs: whoever renders the template refuses them.
    """
    if TEMPLATE in files:
        return files[TEMPLATE].decode("utf-8", errors="surrogateescape")
    value = config.get("chat_template")
    if isinstance(value, list):
        entries = (entry for entry in value if isinstance(entry, dict))
        value = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None
