"""Tokenizers of others: ids, special tokens and ends are theirs; what cannot be read is one refusal."""

import copy
import json
from pathlib import Path

import pytest

from minirlhf.errors import InputError
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.rl.token_log import pieces, token_text
from minirlhf.store.weights import save_transformer
from minirlhf.text.foreign import ForeignTokenizer, load_tokenizer
from minirlhf.text.tokenizer import text_ids, train_tokenizer
from tests.helpers import CONFIG, seeded
from tests.text.foreign_files import FAMILIES, byte_level, llama2, llama3, smollm, write

TEXTS = (
    "the cat", "  two  spaces\n", "naïve café cafe\u0301 茶 🎉 12345", "a<think>b</think> c", "", " lead", "x\n\n y",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def found(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


def letters(folder: Path, added=(), config=None, **model) -> Path:
    """Byte-level BPE of a, b, their pair and a space; its ids are given, or 0, 1, 2, 3."""
    data = json.loads(byte_level([]).to_str())
    data["model"] |= {"vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]} | model
    data["added_tokens"] = [
        {"id": i, "content": name, "special": True, "normalized": False} for i, name in dict(added).items()
    ]
    return write(folder, data, config or {"eos_token": "<e>"})


# ---- starts and ends ---------------------------------------------------------------------------------------


def test_starts_and_ends_are_what_the_files_say(found):
    name = {key: tokenizer.special for key, tokenizer in found.items()}
    starts = {key: [name[key][i] for i in t.start] for key, t in found.items()}
    assert starts == {"smollm": [], "qwen": [], "llama2": ["<s>"], "llama3": ["<|begin|>"]}
    ends = {key: [name[key][i] for i in t.stops] for key, t in found.items()}
    assert ends["smollm"] == ["<|im_end|>"]
    assert ends["qwen"] == ["<|im_end|>", "<|endoftext|>"]
    assert ends["llama2"] == ["</s>"]
    assert ends["llama3"] == ["<|eot|>", "<|eos|>"]
    assert all(t.eos_id == t.stops[0] for t in found.values())
    assert [name[key][t.pad_id] for key, t in found.items()] == ["<|im_end|>", "<|endoftext|>", "</s>", "<|eot|>"]


def test_add_bos_token_decides_before_the_post_processor(tmp_path):
    assert load_tokenizer(llama3(tmp_path / "3", add_bos_token=False)).start == ()
    two = load_tokenizer(llama2(tmp_path / "2", add_bos_token=None))
    assert two.start == (two.bos_id,)  # from its post-processor


def test_ends_of_config_json_serve_where_generation_config_has_none(tmp_path):
    folder = letters(tmp_path, {4: "<e>", 5: "<f>"})
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [5, 99], "pad_token_id": 5}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.stops, tokenizer.pad_id) == (4, (4, 5), 5)
    (tmp_path / "saved").mkdir()
    save_transformer(tmp_path / "saved", Transformer(TransformerConfig(**CONFIG.__dict__)), tokenizer)
    again = load_tokenizer(tmp_path / "saved")
    assert (again.stops, again.pad_id, again.hash) == ((4, 5), 5, tokenizer.hash)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    assert load_tokenizer(folder).stops == (4,)


def test_names_of_special_tokens_map_serve_where_the_config_has_none(tmp_path):
    folder = letters(tmp_path, {4: "<e>", 5: "<p>"}, {"model_max_length": 9})
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<e>", "pad_token": {"content": "<p>"}}))
    assert (load_tokenizer(folder).eos_id, load_tokenizer(folder).pad_id) == (4, 5)


def test_a_tokenizer_that_names_no_end_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no token that ends a text.*tokenizer\.json"):
        load_tokenizer(letters(tmp_path, {4: "<e>"}, {"bos_token": "<e>"}))


# ---- what is never sampled ---------------------------------------------------------------------------------


def test_holes_and_the_padding_of_a_vocabulary_are_banned(tmp_path):
    """a b ab and a space at 0, 2, 5, 6; <e> at 8, <p> at 9; the model has 12."""
    vocab = {"a": 0, "b": 2, "ab": 5, "Ġ": 6}
    tokenizer = load_tokenizer(
        letters(tmp_path, {8: "<e>", 9: "<p>"}, {"eos_token": "<e>", "pad_token": "<p>"}, vocab=vocab)
    )
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode("ab ba") == [5, 6, 2, 0]
    assert tokenizer.decode([5, 8, 6, 2, 9]) == "ab b"
    assert tokenizer.banned(12) == (1, 3, 4, 7, 9, 10, 11)
    with pytest.raises(IndexError):
        tokenizer.token_bytes(7)


def test_pad_that_is_eos_is_neither_banned_nor_taken_for_padding(tmp_path):
    tokenizer = load_tokenizer(letters(tmp_path, {4: "<e>"}, {"eos_token": "<e>", "pad_token": "<e>"}))
    assert (tokenizer.pad_id, tokenizer.stops, tokenizer.banned(5)) == (4, (4,), ())
    out = sampled(tokenizer)
    assert out.terminated.any()
    for row, ids in enumerate(out.completion_id_lists):
        assert ids.count(4) == (ids[-1] == 4) == out.terminated[row].item()
        assert out.completions[row] == tokenizer.decode(ids)
    assert (out.response_ids[~out.response_mask] == 4).all()


def test_bos_that_is_eos_begins_a_text_and_ends_a_response(tmp_path):
    config = {"eos_token": "<e>", "bos_token": "<e>", "add_bos_token": True}
    tokenizer = load_tokenizer(letters(tmp_path, {4: "<e>"}, config))
    assert (tokenizer.start, tokenizer.banned(5)) == ((4,), ())
    assert text_ids(tokenizer, "a", "b", True) == [4, 0, 1, 4]
    assert sampled(tokenizer).terminated.any()


def test_several_stops_each_end_a_row(tmp_path):
    folder = letters(tmp_path, {4: "<e>", 5: "<f>", 6: "<p>"}, {"eos_token": "<e>", "pad_token": "<p>"})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 4]}))
    tokenizer = load_tokenizer(folder)
    out = sampled(tokenizer, vocab=9)
    last = {ids[-1] for ids, ended in zip(out.completion_id_lists, out.terminated.tolist(), strict=True) if ended}
    assert last == {4, 5}
    assert not {4, 5} & {i for ids in out.completion_id_lists for i in ids[:-1]}
    assert not {6, 7, 8} & set(out.response_ids[out.response_mask].tolist())
    assert all("<" not in text for text in out.completions)
    assert (out.response_ids[~out.response_mask] == 6).all()


def sampled(tokenizer, vocab: int = 5):
    """Forty responses of a random model of this vocabulary."""
    trunk = Transformer(TransformerConfig(**{**CONFIG.__dict__, "vocab_size": vocab})).initialise(seeded())
    policy = Policy(trunk, Sampler(1.0, tokenizer.banned(vocab), tokenizer.stops))
    prompts = PromptBatch.build(["a", "ab b"] * 20, [{}] * 40, tokenizer)
    assert prompts.mask.sum(dim=1).tolist() == [1 + len(tokenizer.start), 3 + len(tokenizer.start)] * 20
    return generate(policy, prompts, tokenizer, max_new_tokens=12, generator=seeded())


def test_an_empty_prompt_needs_a_token_to_go_on_from(found):
    with pytest.raises(InputError, match=r"the prompt is empty.*give a prompt"):
        PromptBatch.build([""], [{}], found["qwen"])
    assert PromptBatch.build([""], [{}], found["llama2"]).ids.tolist() == [[1]]
    assert text_ids(found["qwen"], "", "a", True)[-1] == found["qwen"].eos_id


# ---- text and ids ------------------------------------------------------------------------------------------


def test_bytes_of_the_tokens_are_the_text(found):
    for text in TEXTS:
        for name in ("smollm", "llama3"):
            ids = found[name].encode(text)
            assert found[name].decode(ids) == text == "".join(pieces(found[name], ids))
        assert found["qwen"].decode(found["qwen"].encode(text)) == text.replace("e\u0301", "é")  # NFC
        assert found["llama2"].decode(found["llama2"].encode(text)) == (" " + text if text else "")
        assert found["llama2"].decode(found["llama2"].encode_batch([text], continued=True)[0]) == text


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_what_goes_on_gets_no_space_of_its_own(tmp_path, scheme, found):
    meta = load_tokenizer(llama2(tmp_path, scheme))
    for tokenizer in (found["llama2"], meta):
        word, again = tokenizer.encode("the"), tokenizer.encode_batch(["the", " the"], continued=True)
        assert tokenizer.decode(word) == " the"
        assert [tokenizer.decode(ids) for ids in again] == ["the", " the"]
        assert again[1] == word
        assert text_ids(tokenizer, "a", "the", True) == [1, *tokenizer.encode("a"), *again[0], 2]
        assert text_ids(tokenizer, "", "the", False) == [1, *word]


def test_a_special_token_that_a_text_spells_out_is_text(found):
    for tokenizer in found.values():
        for name in tokenizer.special.values():
            ids = tokenizer.encode(f"a{name} b")
            assert not set(ids) & tokenizer.special.keys()
            assert tokenizer.decode(ids).strip() == f"a{name} b"


def test_an_added_token_that_is_not_special_is_found_in_a_text(found):
    ids = found["qwen"].encode("<think>a")
    assert found["qwen"].token_bytes(ids[0]) == b"<think>"
    assert ids[0] not in found["qwen"].special


def test_special_tokens_are_named_in_the_token_view_and_dropped_from_a_text(found):
    for tokenizer in found.values():
        assert [token_text(tokenizer, i) for i in tokenizer.special] == list(tokenizer.special.values())
        assert tokenizer.decode(tokenizer.special) == ""


def test_a_character_without_a_token_is_named(tmp_path):
    tokenizer = load_tokenizer(letters(tmp_path, {4: "<e>"}))
    with pytest.raises(InputError, match=r"no token for 'c' \(U\+0063\): 'abc'"):
        tokenizer.encode("abc")
    with pytest.raises(InputError, match=r"'\\x07' \(U\+0007\)"):
        tokenizer.encode("a\a")
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(InputError, match="'é'"):  # again: what was missing stays missing
        tokenizer.encode_batch(["ab", "é"])


def test_a_character_of_sentencepiece_needs_a_token_or_all_its_bytes(tmp_path, folders):
    data = json.loads((folders["llama2"] / "tokenizer.json").read_text())
    del data["model"]["vocab"]["<0xE8>"]  # a hole; the first byte of a tea
    config = json.loads((folders["llama2"] / "tokenizer_config.json").read_text())
    tokenizer = load_tokenizer(write(tmp_path, data, config))
    assert tokenizer.decode(tokenizer.encode("🎉")) == " 🎉"
    with pytest.raises(InputError, match=r"'茶' \(U\+8336\)"):
        tokenizer.encode("a 茶")


# ---- files -------------------------------------------------------------------------------------------------


def test_files_are_written_back_as_they_were(tmp_path, folders, found):
    for name, folder in folders.items():
        (folder / "config.json").write_text("{}")
        (tmp_path / name).mkdir()
        tokenizer = found[name]
        trunk = Transformer(TransformerConfig(**{**CONFIG.__dict__, "vocab_size": tokenizer.vocab_size}))
        save_transformer(tmp_path / name, trunk, tokenizer)
        for file in folder.iterdir():
            if file.name != "config.json":
                assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
        again = load_tokenizer(tmp_path / name)
        assert (again.hash, again.stops, again.start) == (tokenizer.hash, tokenizer.stops, tokenizer.start)


def test_the_hash_is_over_all_that_decides_ids(tmp_path):
    variants = [{}, {"add_bos_token": True, "bos_token": "<|im_end|>"}, {"eos_token": "<|endoftext|>"}]
    variants.append({"chat_template": "{{ messages }}"})
    hashes = {load_tokenizer(smollm(tmp_path / str(i), **config)).hash for i, config in enumerate(variants)}
    assert len(hashes) == 4
    assert load_tokenizer(smollm(tmp_path / "same", model_max_length=7)).hash in hashes


def test_our_own_files_are_our_own_kind(tmp_path):
    ours = train_tokenizer(["a b"], 259)
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert not isinstance(again, ForeignTokenizer)
    assert again.hash == ours.hash
    assert (again.start, again.stops, again.banned(261)) == ((1,), (2,), (0, 1, 259, 260))
    assert again.special == {0: "<pad>", 1: "<bos>", 2: "<eos>"}


def test_a_directory_without_a_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer: .*tokenizer\.json; give a directory"):
        load_tokenizer(tmp_path)


def faults():
    base = json.loads(byte_level(["<e>"]).to_str())

    def changed(path, value):
        data = copy.deepcopy(base)
        *outer, last = path.split(".")
        place = data
        for key in outer:
            place = place[key]
        place[last] = value
        return data

    vocab = base["model"]["vocab"]
    added = base["added_tokens"][0]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return {
        "WordPiece": changed("model.type", "WordPiece"),
        "Unigram": changed("model.type", "Unigram"),
        "vocab is not": changed("model.vocab", []),
        "given twice": changed("model.vocab", vocab | {"zz": 0}),
        "whole number": changed("model.vocab", vocab | {"zz": 2.5}),
        "that vocab lacks": changed("model.merges", [["a", "好"]]),
        "a token that vocab": changed("model.merges", [["z", "q"]]),  # the core panics on it
        "not a pair": changed("model.merges", ["a b c"]),
        "dropout": changed("model.dropout", 0.5),
        "unk_token": changed("model.unk_token", "<none>"),
        "true or false": changed("model.fuse_unk", "yes"),
        "'Lowercase'": changed("normalizer", {"type": "Lowercase"}),
        "'Removed'|'Split'": changed("pre_tokenizer", split | {"pattern": {"String": "a"}, "behavior": "Removed"}),
        "repeats a group": changed("pre_tokenizer", split | {"pattern": {"Regex": "(a+)+b|(x+x+)+y"}}),
        "retry-limit": changed("pre_tokenizer", split | {"pattern": {"Regex": "a*a*a*a*a*a*(?<=b)"}}),  # a panic
        "unmatched": changed("pre_tokenizer", split | {"pattern": {"Regex": "("}}),
        "no content": changed("added_tokens", [added | {"content": ""}]),
        "two ids": changed("added_tokens", [added | {"content": "a"}]),
        "have the id": changed("added_tokens", [added, added | {"content": "<f>"}]),
        "not an object": changed("model", "BPE"),
        "a flag": changed("added_tokens", [added | {"lstrip": 3}]),
    }


@pytest.mark.parametrize("what", faults())
def test_a_file_that_cannot_be_used_is_one_refusal_and_nothing_is_printed(what, tmp_path, capfd):
    folder = write(tmp_path, faults()[what], {"eos_token": "<e>"})
    with pytest.raises(InputError, match=rf"tokenizer cannot be used \(.*({what}).*tokenizer\.json") as refusal:
        load_tokenizer(folder)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("tokenizer.json", "\udcff"), ("tokenizer_config.json", "3")],
)
def test_malformed_json_names_the_file(name, content, tmp_path):
    folder = smollm(tmp_path)
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_tokenizer(folder)


def test_a_panic_while_encoding_is_a_refusal_as_well(tmp_path, capfd):
    data = json.loads(byte_level(["<e>"]).to_str())
    pattern = {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": "q*q*q*q*q*q*(?<=b)"}}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, data["pre_tokenizer"]]}
    tokenizer = load_tokenizer(write(tmp_path, data, {"eos_token": "<e>"}))
    assert tokenizer.encode("a b")
    with pytest.raises(InputError, match="cannot encode a text"):
        tokenizer.encode("q" * 300)
    capfd.readouterr()


def test_reading_one_prints_nothing(folders, capfd):
    """That it needs no transformers: tests/cli/test_own_model.py, in a process of its own."""
    load_tokenizer(folders["qwen"], chat=True)
    assert capfd.readouterr() == ("", "")


# ---- the transformers library ------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.parametrize("name", [*FAMILIES, "first", "always", "never"])
def test_ids_and_texts_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = FAMILIES[name](tmp_path) if name in FAMILIES else llama2(tmp_path, name)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == ours.eos_id
    assert {i for i in theirs.all_special_ids if i is not None} <= ours.special.keys()
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert [*ours.start, *ids] == theirs(text)["input_ids"]
        decoded = theirs.decode([*ours.start, *ids, ours.eos_id], skip_special_tokens=True)
        assert ours.decode([*ours.start, *ids, ours.eos_id]) in (decoded, " " + decoded)


@pytest.mark.interop
def test_qwen_tokens_of_the_config_alone_are_those_of_transformers(tmp_path):
    """added_tokens_decoder names a token that tokenizer.json lacks."""
    transformers = pytest.importorskip("transformers")
    rust = byte_level(["<|end|>"])
    more = {"id": rust.get_vocab_size(), "content": "<x>", "special": False}
    decoder = {str(rust.token_to_id("<|end|>")): {"content": "<|end|>", "special": True}, str(more["id"]): more}
    for entry in decoder.values():
        entry |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        entry.pop("id", None)
    folder = write(tmp_path, rust, {"eos_token": "<|end|>", "added_tokens_decoder": decoder})
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode("a<x>b") == theirs("a<x>b")["input_ids"]
    assert ours.vocab_size == len(theirs)


def test_a_stop_that_is_an_ordinary_token_is_text_everywhere_but_at_the_end(tmp_path):
    folder = smollm(tmp_path)
    plain = load_tokenizer(folder)
    (sign,) = plain.encode("#")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [plain.eos_id, sign]}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.stops == (plain.eos_id, sign)
    assert tokenizer.decode(tokenizer.encode("a # b #1")) == "a # b #1"
    assert sign not in tokenizer.special
