"""Boundaries: which prompts and completions meet without a space, and what the tokens say about it."""

import pytest

from minirlhf.text.boundary import ending_note, meeting_note, meets_without_space
from minirlhf.text.tokenizer import train_tokenizer


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Capital of France?", "Paris"),
        ("The capital is", "Paris"),
        ("Answer:", "42"),
        ("(in France)", "Paris"),
        ("«Paris»", "oui"),
        ("नमस्ते", "दुनिया"),  # ends in a vowel sign
        ("프랑스의 수도는", "파리"),  # Korean has spaces
    ],
)
def test_words_that_meet_without_a_space(prompt, completion):
    assert meets_without_space(prompt, completion)
    for sound in (
        (prompt + " ", completion),
        (prompt + "\n", completion),
        (prompt, " " + completion),
        ("", completion),
    ):
        assert not meets_without_space(*sound)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("The capital is Paris", ", of course"),
        ("Paris", "(France)"),
        ('He said "', "Hello"),
        ("Paris (", "France"),
        ("well-", "known"),
        ("2+2=", "4"),
        ("法国的首都是？", "巴黎"),
        ("法国的首都是", "巴黎"),
        ("法国的首都？", "Paris"),
        ("Translate:", "水"),
        ("ประเทศไทย", "กรุงเทพ"),
        ("Paris", ""),
    ],
)
def test_what_needs_no_space(prompt, completion):
    assert not meets_without_space(prompt, completion)


def test_a_note_has_the_count_and_an_example_and_counts_a_comparison_once():
    rows = [("Where?", " Here", " There"), ("Where?", "Here", "There"), ("Who?", " I", "You")]
    (note,) = meeting_note(rows, "comparisons")
    assert note.startswith("in 2 of 3 comparisons prompt and completion meet without a space")
    assert "'Where?' + 'Here'" in note
    assert meeting_note(rows[:1], "comparisons") == []


def test_prompts_that_end_in_a_space():
    assert "2 of 3 prompts end in a space, such as 'I bought '" in (ending_note(["I bought ", "I", " "]) or "")
    assert (ending_note(["I bought "]) or "").startswith("the prompt ends in a space")
    assert ending_note(["I bought", "I bought\n", "I bought\t", ""]) is None


def test_what_the_notes_say_of_the_tokens_is_so():
    """A word of running text is one token with its space; glued, and behind a space of its own, it is another."""
    tokenizer = train_tokenizer(["ask Paris for Paris"] * 40, 300)
    (word,) = tokenizer.encode(" Paris")
    assert tokenizer.encode("ask Paris") == [*tokenizer.encode("ask"), word]
    assert word not in tokenizer.encode("Paris")
    assert tokenizer.encode("ask ")[-1:] == tokenizer.encode(" ")
    assert word not in tokenizer.encode("ask ")
