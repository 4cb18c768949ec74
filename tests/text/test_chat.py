"""Conversations: contents in parts, what is no text, and one prompt for every reader."""

import json

import pytest

from minirlhf.errors import InputError
from minirlhf.text.chat import text_of, typed_messages, typed_prompt
from minirlhf.text.comparisons import read_comparisons, read_demonstrations
from minirlhf.text.corpus import read_documents, read_prompts
from tests.manual import blocks, read


def said(role, content):
    return {"role": role, "content": content}


def part(text):
    return {"type": "text", "text": text}


SYSTEM, USER, GOOD, BAD = (
    said("system", "Be kind."),
    said("user", "Hi"),
    said("assistant", "It is"),
    said("assistant", "It was"),
)
GIVEN, TEXT = [SYSTEM, USER], "Be kind.\nHi"


def file_of(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Hi", "Hi"),
        (" ", ""),
        ([], ""),
        (GIVEN, TEXT),
        ([said("user", [part("a"), part("b ")]), said("user", "c")], "ab \nc"),  # parts end to end, messages by line
        ([said("user", [])], ""),
        ([{**USER, "name": None, "tool_calls": None}], "Hi"),  # as Parquet gives what other rows have
        ([said("user", [{**part("a"), "image_url": None}])], "a"),
    ],
)
def test_the_text_of_a_conversation(value, text):
    assert text_of(value, "prompt", "f:1", "strict") == text


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([USER, said("user", [part("a"), {"type": "image_url", "image_url": {}}])],
         "part 2 of message 2 of 'prompt' is of type 'image_url', not text: f:1; only parts"),
        ([said("user", [{"type": "text", "text": None}])], "part 1 of message 1 of 'prompt' is no text: f:1"),
        ([said("user", ["a"])], "part 1 of message 1 of 'prompt' is no text: f:1"),
        ([said("user", 3)], """"content" of message 1 of 'prompt' is a number, not a string or a list of parts: f:1"""),
        ([USER, {**said("assistant", None), "tool_calls": [{}]}],
         """message 2 of 'prompt' has tool calls and no "content": f:1; write it as text, or remove the row"""),
        ([said("assistant", None)], """message 1 of 'prompt' has no "content" (its role: 'assistant'): f:1"""),
        ([None], "message 1 of 'prompt' is null, not an object: f:1"),
        ({}, "'prompt' is an object, not a string or a list of messages: f:1"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(value, fault):
    with pytest.raises(InputError) as caught:
        text_of(value, "prompt", "f:1", "strict")
    assert str(caught.value).startswith(fault)


SAME = (
    {"prompt": GIVEN, "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": GIVEN, "chosen": [*GIVEN, GOOD], "rejected": [*GIVEN, BAD]},
    {"chosen": [*GIVEN, GOOD], "rejected": [*GIVEN, BAD]},  # not "...Hi\nIt": messages are shared, not words
    {"prompt": TEXT, "chosen": "\nIt is", "rejected": "\nIt was"},
    {"question": [said("user", [part("Be "), part("kind.")]), USER], "chosen": [GOOD], "rejected": [BAD], "gap": None},
    {"messages": [*GIVEN, GOOD]},
    {"prompt": GIVEN, "completion": [GOOD]},
    {"messages": GIVEN},
    {"prompt": None, "messages": GIVEN, "completion": None},
    {"prompt": GIVEN},
)  # fmt: skip


@pytest.mark.parametrize("row", SAME)
def test_a_conversation_is_the_same_prompt_for_every_reader(tmp_path, row):
    """Comparisons, demonstrations and prompts; and what follows it begins with the line break."""
    source = file_of(tmp_path, row)
    (prompt,) = read_prompts(source)
    assert prompt.text == TEXT
    assert prompt.where == f"{source}:1"
    if "chosen" in row:
        (pair,), _ = read_comparisons(source)
        assert (pair.prompt, pair.chosen, pair.rejected) == (TEXT, "\nIt is", "\nIt was")
    if row.get("completion") or "chosen" in row or row.get("messages") == [*GIVEN, GOOD]:
        (shown,), _ = read_demonstrations(source)
        assert (shown.prompt, shown.completion) == (TEXT, "\nIt is")
        assert [d.text for d in read_documents(source)] == [f"{TEXT}\nIt is"]


def test_a_completion_that_begins_like_the_prompt_keeps_its_beginning(tmp_path):
    row = {"prompt": [said("user", "I")], "chosen": [GOOD], "rejected": [said("assistant", "Is")]}
    (pair,), _ = read_comparisons(file_of(tmp_path, row))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("I", "\nIt is", "\nIs")


def test_nothing_stands_before_a_completion_without_a_prompt(tmp_path):
    sides = {"chosen": [GOOD], "rejected": [BAD]}
    (pair,), _ = read_comparisons(file_of(tmp_path, {"prompt": [], **sides}))
    assert (pair.prompt, pair.chosen, pair.rejected) == ("", "It is", "It was")
    (shown,), _ = read_demonstrations(file_of(tmp_path, {"prompt": [], "completion": [GOOD]}))
    assert (shown.prompt, shown.completion) == ("", "It is")


def test_the_other_fields_of_a_conversation_are_columns(tmp_path):
    rows = {"messages": [USER, GOOD], "topic": "tea"}, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    first, second = read_prompts(file_of(tmp_path, *rows))
    assert first.columns == {"topic": "tea", "chosen": None, "rejected": None}
    assert second.columns == {"topic": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [GOOD]}, "row holds no prompt (its fields: 'messages')"),
        ({"messages": "Hi"}, "'messages' is a string, not a list of messages"),
        ({"chosen": "good", "rejected": "bad"}, "row holds no prompt (its fields: 'chosen', 'rejected')"),
        ({"chosen": "a b", "rejected": "a b"}, "row holds no prompt"),
        ({"completion": "a"}, "row holds no prompt"),
        ({"prompt": []}, "'prompt' is empty"),
        ({"prompt": {}}, "'prompt' is an object"),
        ({"messages": [USER, said("assistant", None)]}, None),  # what comes behind the prompt is not read
    ],
)
def test_a_row_without_a_prompt_is_refused_with_its_line(tmp_path, row, fault):
    source = file_of(tmp_path, {"prompt": "a"}, row)
    if fault is None:
        assert [p.text for p in read_prompts(source)] == ["a", "Hi"]
        return
    with pytest.raises(InputError) as caught:
        read_prompts(source)
    assert str(caught.value).startswith(fault)
    assert f"{source}:2" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", ""),
        ("a\r\nb\rc\ufeff", "a\nb\nc"),
        (json.dumps(GIVEN), TEXT),
        ("[1, 2]", "[1, 2]"),
        ("[]", "[]"),
        ('[{"role"', '[{"role"'),
    ],
)
def test_a_typed_prompt_is_text_or_a_conversation(text, prompt):
    assert typed_prompt(text, "PROMPT") == prompt


def test_the_conversation_that_the_manual_shows(tmp_path):
    (shown,) = blocks(read("docs/preferences.md"), "json")
    (row,), _ = read_demonstrations(file_of(tmp_path, json.loads(shown)))
    assert (row.prompt, row.completion) == ("Be kind.\nHi", "\nHello")


@pytest.mark.parametrize(
    "typed", ['[{"role": "user", "content": "hi"}, null]', '[{"content": 5}]', '[{"role": "user"}]']
)
def test_a_typed_conversation_with_a_broken_message_is_refused(typed):
    with pytest.raises(InputError, match="message"):
        typed_prompt(typed, "PROMPT")


@pytest.mark.parametrize("typed", ["[1, 2]", "[sic] he said", "[]", '[{"x": 1}]'])
def test_what_only_looks_like_a_conversation_is_text(typed):
    assert typed_prompt(typed, "PROMPT") == typed


def test_a_typed_conversation_keeps_its_messages():
    typed = '[{"role": "system", "content": "s"}, {"content": [{"type": "text", "text": "a"}]}]'
    assert typed_messages(typed, "PROMPT") == [{"role": "system", "content": "s"}, {"role": "", "content": "a"}]
    assert typed_messages("[1] is a text", "PROMPT") is None
