"""Files of a tokenizer with values of any type: one refusal that names the file, or a tokenizer that works."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from minirlhf.errors import InputError
from minirlhf.text.foreign import ForeignTokenizer, load_tokenizer
from tests.text.foreign_files import FAMILIES, byte_level, llama3, smollm, write

ODD: list[Any] = [[], {}, 1, -1, 0.5, "a", "", None, True, ["a"], [1], {"a": []}, [None], "\ud800"]
NAMES = ("tokenizer.json", "tokenizer_config.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a value; of a long list or object those of the first and the last five."""
    found = [path] if path else []
    size = len(value) if isinstance(value, list) else 0
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(size))
    for key in keys if len(keys) < 12 else [*keys[:5], *keys[-5:]]:
        found += places(value[key], (*path, key))
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at a path."""
    copied = copy.deepcopy(value)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return copied


def use(folder: Path) -> str:
    """Whatever is asked of a tokenizer; the refusal if there is one."""
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("the cat"))
        tokenizer.banned(tokenizer.vocab_size)
        if isinstance(tokenizer, ForeignTokenizer):
            tokenizer.whole_ids("the", "cat")
            load_tokenizer(folder, chat=True)
    except InputError as refusal:
        return str(refusal)
    return ""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folders = {name: make(tmp_path_factory.mktemp(name)) for name, make in FAMILIES.items()}
    metaspace = FAMILIES["llama2"](tmp_path_factory.mktemp("metaspace"), "first")
    return [*folders.values(), metaspace]


def test_values_of_any_type_are_one_refusal_or_fine(bases, tmp_path, capfd):
    draw = random.Random(7)
    for _ in range(60):
        base, name = draw.choice(bases), draw.choice(NAMES)
        for file in base.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        data = json.loads((base / name).read_text())
        path, new = draw.choice(places(data)), draw.choice(ODD)
        (tmp_path / name).write_text(json.dumps(changed(data, path, new)))
        said = use(tmp_path)
        assert "\n" not in said
        assert not said or (str(tmp_path) in said and "; " in said) or "no token for" in said, (path, new, said)
    assert capfd.readouterr() == ("", "")


def processor(single: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}


FAULTS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a special token without a name": (("post_processor",), processor([{"SpecialToken": []}])),
    "what it puts together is not a list": (("post_processor",), processor("<e> $A")),
    "post_processor is not an object": (("post_processor",), "a"),
    "a sequence without steps": (("post_processor",), {"type": "Sequence", "processors": {}}),
    "a step of post_processor": (("post_processor",), {"type": "Sequence", "processors": [3]}),
    "no content or no id": (("added_tokens", 0, "id"), [1]),
    "unk_token is not in the vocabulary": (("model", "unk_token"), ["a"]),
    "model.fuse_unk is not true or false": (("model", "fuse_unk"), 1),
    "model.byte_fallback is not true or false": (("model", "byte_fallback"), "yes"),
    "'Split' with these settings": (
        ("pre_tokenizer",), {"type": "Split", "pattern": {"String": "a"}, "behavior": ["Isolated"], "invert": False},
    ),
    "'Metaspace' with these settings": (
        ("pre_tokenizer",), {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": ["first"]},
    ),
    "the library refuses it": (
        ("pre_tokenizer",), {"type": "Split", "pattern": {"Regex": "\ud800"}, "behavior": "Isolated", "invert": False},
    ),
    "half of a surrogate pair": (("added_tokens", 0, "content"), "\ud800"),
}  # fmt: skip


@pytest.mark.parametrize("said", FAULTS)
def test_a_value_of_another_type_is_told(said, tmp_path):
    data = json.loads(byte_level(["<e>"]).to_str())
    folder = write(tmp_path, changed(data, *FAULTS[said]), {"eos_token": "<e>"})
    with pytest.raises(InputError, match=rf"tokenizer cannot be used \(.*{said}.*tokenizer\.json; take another model"):
        load_tokenizer(folder)


def test_half_of_a_surrogate_pair_in_the_vocabulary_is_told(tmp_path):
    data = json.loads(byte_level(["<e>"]).to_str())
    data["model"]["vocab"]["\ud800"] = 999
    with pytest.raises(InputError, match=r"half of a surrogate pair.*tokenizer\.json"):
        load_tokenizer(write(tmp_path, data, {"eos_token": "<e>"}))


def test_half_of_a_surrogate_pair_in_a_name_is_told(tmp_path):
    with pytest.raises(InputError, match=r"half of a surrogate pair.*tokenizer\.json; take"):
        load_tokenizer(smollm(tmp_path, bos_token={"content": "\ud800"}))


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000], ids=["torn", "bytes", "twice", "deep"]
)
def test_json_that_is_none_says_what_to_do(content, tmp_path):
    smollm(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}; download the model again"):
            load_tokenizer(tmp_path)
        smollm(tmp_path)


# ---- what decides ids is in the hash -----------------------------------------------------------------------


def test_the_hash_sees_tokens_that_the_config_alone_adds(tmp_path):
    plain = load_tokenizer(smollm(tmp_path / "plain"))
    more = {"content": "<x>", "special": False, "normalized": False}
    number = str(plain.vocab_size)
    longer = load_tokenizer(smollm(tmp_path / "more", added_tokens_decoder={number: more}))
    other = load_tokenizer(smollm(tmp_path / "other", added_tokens_decoder={number: more | {"content": "the cat"}}))
    assert plain.encode("the cat") == longer.encode("the cat") != other.encode("the cat")
    assert len({plain.hash, longer.hash, other.hash}) == 3


def test_the_hash_is_as_it_was_where_the_config_repeats_what_tokenizer_json_has(tmp_path):
    plain = load_tokenizer(smollm(tmp_path / "plain"))
    own = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())["added_tokens"]
    again = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in own}
    assert load_tokenizer(smollm(tmp_path / "again", added_tokens_decoder=again)).hash == plain.hash


# ---- a template that nobody uses ---------------------------------------------------------------------------


def broken(folder: Path, how: str) -> Path:
    llama3(folder, **({"chat_template": "{% if %}"} if how == "syntax" else {}))
    if how == "bytes":
        (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\xff")
    return folder


@pytest.mark.parametrize(("how", "said"), [("syntax", "TemplateSyntaxError.*config"), ("bytes", r"not UTF-8.*\.jinja")])
def test_a_broken_template_is_refused_where_it_is_used_and_not_before(how, said, tmp_path):
    folder = broken(tmp_path, how)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the cat")
    assert tokenizer.text_ids("the", " cat", True)
    for call in (lambda: load_tokenizer(folder, chat=True), lambda: tokenizer.whole_ids("the", " cat")):
        with pytest.raises(InputError, match=said):
            call()
