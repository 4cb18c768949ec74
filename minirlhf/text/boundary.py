"""Boundaries of texts: how a prompt ends, and whether it and its completion meet without a space.

To the tokenizer a word begins with its space: " Paris" is another token than "Paris". A text of two parts that meet in
the wrong way is read without any fault, but its tokens are not those of the same words in running text. The notes here
are sentences for the user; nothing is changed. Not here: reading texts (files.py), and their tokens (tokenizer.py).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Letters of scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Chinese.
SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
JOINERS = "\"'/\\@#&*¡¿"  # other punctuation behind which a word may follow at once: a quote may be an opening one


def meets_without_space(prompt: str, completion: str) -> bool:
    """True if a word of the completion follows the prompt's last word, or the end of its sentence, without a space.

    "France?" and "Paris" do. White space on either side, a completion that begins with punctuation, a prompt that ends
    with an opening bracket, a quote, a dash or a symbol, and scripts that put no spaces between words are sound.
    """
    if not prompt or not completion:
        return False
    last, first = prompt[-1], completion[0]
    if _spaceless(last) or _spaceless(first) or unicodedata.category(first)[0] not in "LMN":
        return False
    kind = unicodedata.category(last)
    return kind[0] in "LMN" or kind in ("Pe", "Pf") or (kind == "Po" and last not in JOINERS)


def _spaceless(character: str) -> bool:
    """True for a letter of a script without spaces, and for its wide punctuation; Hangul has spaces."""
    wide = unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character)[0] == "P"
    return wide or SPACELESS.match(character) is not None


def meeting_note(pairs: Iterable[Sequence[str]], what: str) -> list[str]:
    """A sentence on the pairs (prompt, completion, ...) that meet without a space: one, or none.

    what: the name of such a pair in the plural. A pair with several completions counts once.
    """
    count, found = 0, list[tuple[str, str]]()
    for prompt, *completions in pairs:
        count += 1
        found += [(prompt, text) for text in completions if meets_without_space(prompt, text)][:1]
    if not found:
        return []
    prompt, completion = found[0]
    return [
        f"in {len(found)} of {count} {what} prompt and completion meet without a space, such as {prompt[-16:]!r} + "
        f"{completion[:16]!r}: the tokens are then not those of the same words in running text, where a word begins "
        "with its space; begin completions with a space, or end prompts with a line break"
    ]


def ending_note(prompts: Sequence[str]) -> str | None:
    """A sentence on prompts that end in a space, None without any. A line break or tab never belongs to a word."""
    found = [text for text in prompts if text.endswith(" ")]
    if not found:
        return None
    which = "the prompt ends" if len(prompts) == 1 else f"{len(found)} of {len(prompts)} prompts end"
    return (
        f"{which} in a space, such as {found[0][-16:]!r}: to the tokenizer a word begins with its space, so what goes "
        "on behind one is a token that running text does not have there; leave it out unless the demonstrations have it"
    )
