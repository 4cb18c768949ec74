"""Splitting of text before BPE: the normaliser and the pre-tokenizer of a foreign tokenizer.json, checked.

Only steps after which the text is whole are read; one that drops or changes characters for good is refused. Not here:
vocabulary, merges and encoding (core.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Regex, normalizers, pre_tokenizers

from minirlhf.text.tokenizer import Malformed

SPACE: Final = "\u2581"  # stands for a space in the vocabularies of sentencepiece
# A group that is repeated can take the regex engine more steps than it allows, where it panics.
_REPEATED: Final = re.compile(r"\)(?:[*+]|\{\d*,)")
_BEHAVIOURS: Final = {
    "Isolated": "isolated", "MergedWithPrevious": "merged_with_previous", "MergedWithNext": "merged_with_next",
    "Contiguous": "contiguous",
}  # fmt: skip


@dataclass(frozen=True)
class Splitting:
    """Normaliser and pre-tokenizer, and the same two without the space that they put in front of a text."""

    normalizer: normalizers.Normalizer | None
    pre_tokenizer: pre_tokenizers.PreTokenizer | None
    bare: tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer | None]
    byte_level: bool  # symbols are those of bytes
    spaced: bool  # spaces are SPACE
    prefixed: bool
    each: bool  # a space is put in front of every part behind a special token, too


def asked(call: Callable[[], Any]) -> Any:
    """Result of a call of the library; Malformed in place of its own errors and its panics."""
    try:
        return call()
    except TypeError:
        raise
    except BaseException as exc:  # a panic is no Exception
        if type(exc).__name__ != "PanicException" and type(exc) not in (Exception, ValueError, UnicodeEncodeError):
            raise
        raise Malformed(f"the library refuses it: {str(exc)[:120]}") from None


def splitting(data: dict[str, Any]) -> Splitting:
    """Normaliser and pre-tokenizer of a parsed file (Malformed for one that is not supported)."""
    chain = [normaliser_of(step) for step in steps_of(data, "normalizer", "normalizers")]
    words = [word_step(step) for step in steps_of(data, "pre_tokenizer", "pretokenizers")]
    kinds = [step["type"] for step in steps_of(data, "pre_tokenizer", "pretokenizers")]
    prepends = any(isinstance(step, normalizers.Prepend) for step in chain)
    whole = normalizers.Sequence(chain) if chain else None
    kept = [step for step in chain if not isinstance(step, normalizers.Prepend)]
    spaced = "Metaspace" in kinds or any(isinstance(step, normalizers.Replace) for step in chain)
    if "ByteLevel" in kinds and (spaced or prepends or kinds.count("ByteLevel") > 1):
        raise Malformed("pre_tokenizer mixes bytes and spaces of sentencepiece")
    return Splitting(
        normalizer=whole,
        pre_tokenizer=pre_tokenizers.Sequence([step for step, _, _ in words]) if words else None,
        bare=(
            normalizers.Sequence(kept) if kept else None,
            pre_tokenizers.Sequence([bare for _, bare, _ in words]) if words else None,
        ),
        byte_level="ByteLevel" in kinds,
        spaced=spaced,
        prefixed=prepends or any(scheme for _, _, scheme in words),
        each=prepends or any(scheme == "always" for _, _, scheme in words),
    )


def steps_of(data: dict[str, Any], name: str, inner: str) -> list[dict[str, Any]]:
    """Steps of a section one after another, a sequence unrolled; [] for null."""
    waiting, found = [data.get(name)], list[dict[str, Any]]()
    while waiting:
        step = waiting.pop(0)
        if step is None and not found:
            continue
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise Malformed(f"{name} is not an object with a type")
        if step["type"] != "Sequence":
            found.append(step)
        elif isinstance(step.get(inner), list):
            waiting = [*step[inner], *waiting]
        else:
            raise Malformed(f"{name} is a sequence without steps")
    return found


def normaliser_of(step: dict[str, Any]) -> normalizers.Normalizer:
    """A step of the normaliser, if text is whole after it."""
    kind, pattern = step["type"], step.get("pattern")
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        form: normalizers.Normalizer = getattr(normalizers, kind)()
        return form
    if kind == "Prepend" and step.get("prepend") == SPACE:
        return normalizers.Prepend(SPACE)
    if kind == "Replace" and pattern == {"String": " "} and step.get("content") == SPACE:
        return normalizers.Replace(" ", SPACE)
    raise Malformed(f"a normalizer of type {kind[:40]!r} with these settings is not supported")


def word_step(step: dict[str, Any]) -> tuple[pre_tokenizers.PreTokenizer, pre_tokenizers.PreTokenizer, str]:
    """A step of the pre-tokenizer, the same without a space in front, and where it puts one: always, first or ""."""
    kind = step["type"]
    if kind == "ByteLevel":
        prefix, words = step.get("add_prefix_space", True), step.get("use_regex", True)
        if isinstance(prefix, bool) and isinstance(words, bool):
            bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
            return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=words), bare, "always" if prefix else ""
    if kind == "Digits" and isinstance(step.get("individual_digits"), bool):
        digits = pre_tokenizers.Digits(individual_digits=step["individual_digits"])
        return digits, digits, ""
    scheme, split = step.get("prepend_scheme", "always"), step.get("split", True)
    schemes = {"always": "always", "first": "first", "never": ""}
    known = isinstance(scheme, str) and scheme in schemes
    if kind == "Metaspace" and step.get("replacement") == SPACE and isinstance(split, bool) and known:
        apart = pre_tokenizers.Metaspace(SPACE, "never", split)
        return pre_tokenizers.Metaspace(SPACE, scheme, split), apart, schemes[scheme]
    pattern, behaviour, invert = step.get("pattern"), step.get("behavior"), step.get("invert", False)
    cuts = _BEHAVIOURS.get(behaviour) if isinstance(behaviour, str) else None
    if kind == "Split" and isinstance(pattern, dict) and cuts and isinstance(invert, bool):
        cut = asked(lambda: pre_tokenizers.Split(_pattern(pattern), cuts, invert))
        return cut, cut, ""
    raise Malformed(f"a pre_tokenizer of type {kind[:40]!r} with these settings is not supported")


def _pattern(pattern: dict[str, Any]) -> Regex | str:
    text = pattern.get("Regex")
    if isinstance(text, str):
        if _REPEATED.search(text):
            raise Malformed(f"pattern {text[:60]!r} repeats a group, for which the library may have no end")
        return asked(lambda: Regex(text))  # type: ignore[no-any-return]
    plain = pattern.get("String")
    if not isinstance(plain, str) or not plain:
        raise Malformed("a pattern is neither a regex nor a string")
    return plain
