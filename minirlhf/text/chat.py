"""Conversations: lists of {"role", "content"} messages as text, and the prompt that one holds.

The contents are joined line by line and the roles are dropped. Every reader of prompts, demonstrations and comparisons
takes the text from here, so that SFT, reward model and PPO see the same; the messages go with it, for a tokenizer whose
chat template is in use. Not here: the templates (template.py, foreign.py).
"""

import contextlib
from typing import TYPE_CHECKING, Any

from minirlhf.errors import InputError
from minirlhf.text.files import clean, kind_of, parse_json, unmarked

if TYPE_CHECKING:
    from minirlhf.text.tokenizer import Conversation

_FORM = 'write {"role", "content"}'


def text_of(value: Any, name: str, where: str, errors: str) -> str:
    """Text of a field: a string, or the contents of a list of messages, a line each; it may be empty.

    name: the field, for messages. Errors: InputError with `where` for anything that is no text, such as an image.
    """
    if isinstance(value, list):
        value = "\n".join(_content(message, f"message {n} of {name!r}", where) for n, message in enumerate(value, 1))
    if not isinstance(value, str):
        raise InputError(f"{name!r} is {kind_of(value)}, not a string or a list of messages", where)
    return clean(value, name, where, errors) if value.strip() else ""


def messages_of(value: Any, name: str, where: str, errors: str) -> "Conversation | None":
    """Messages of a field as {"role", "content"}, contents as text; None for a string. A missing role is ""."""
    if not isinstance(value, list):
        return None
    roles = [message.get("role") if isinstance(message, dict) else None for message in value]
    return [
        {"role": role if isinstance(role, str) else "", "content": text_of([message], name, where, errors)}
        for role, message in zip(roles, value, strict=True)
    ]


def typed_prompt(text: str, where: str) -> str:
    """Prompt that was typed or piped: the text as it is, or that of a conversation as JSON, `[{"role": ...}, ...]`."""
    text, messages = _typed(text, where)
    return text_of(messages, "prompt", where, "strict") if messages else text


def typed_messages(text: str, where: str) -> "Conversation | None":
    """Conversation that was typed or piped as JSON; None for any other text."""
    return messages_of(_typed(text, where)[1], "prompt", where, "strict")


def _typed(text: str, where: str) -> tuple[str, Any]:
    """(text with LF line ends, messages that it is as JSON, or None)."""
    text = unmarked(text).replace("\r\n", "\n").replace("\r", "\n")
    messages = None
    if text.lstrip().startswith("["):
        with contextlib.suppress(InputError):  # any other text may begin like this, too
            messages = parse_json(text, where)
    spoken = isinstance(messages, list) and any(
        isinstance(m, dict) and {"role", "content"} & m.keys() for m in messages
    )
    return text, messages if messages and spoken else None


def split_answer(messages: Any, where: str) -> tuple[list[Any], list[Any]]:
    """(messages that are given, the assistant's last message); the second is empty if another speaker ends."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"'messages' is {kind_of(messages)}, not a list of messages", where, _FORM)
    answered = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
    return (messages[:-1], messages[-1:]) if answered else (messages, [])


def shared_messages(chosen: Any, rejected: Any) -> int:
    """Number of equal messages that two conversations begin with, their last ones left out; 0 for anything else."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return 0
    most = max(0, min(len(chosen), len(rejected)) - 1)
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _content(message: Any, title: str, where: str) -> str:
    """Text of one message: its content, or the text parts of it end to end (the form of OpenAI and TRL)."""
    if not isinstance(message, dict):
        raise InputError(f"{title} is {kind_of(message)}, not an object", where, _FORM)
    content = message.get("content")
    if content is None:
        called = any(message.get(name) for name in ("tool_calls", "function_call"))
        what = 'has tool calls and no "content"' if called else f'has no "content" (its role: {message.get("role")!r})'
        raise InputError(f"{title} {what}", where, "write it as text, or remove the row" if called else _FORM)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f'"content" of {title} is {kind_of(content)}, not a string or a list of parts', where, _FORM)
    return "".join(_part(part, f"part {n} of {title}", where) for n, part in enumerate(content, 1))


def _part(part: Any, title: str, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    found = f"of type {str(kind)[:40]!r}, not text" if kind not in (None, "text") else "no text"
    todo = 'only parts {"type": "text", "text": "..."} can be read: remove the part, or the row'
    raise InputError(f"{title} is {found}", where, todo)
