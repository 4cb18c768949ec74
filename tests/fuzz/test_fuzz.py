"""Twenty thousand files and values that nobody meant: each refused with one line, or used as what it is.

The fast share runs by default; all of it by `pytest -m fuzz`. Whatever is raised must be one of ours, and no library
underneath may print anything; a case that takes two seconds hangs.
"""

import copy
import json
import math
import resource
import signal
import tomllib
from functools import partial
from random import Random

import pytest
import tomli_w
import torch

from minirlhf.components.signature import read_component
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, ConfigError, InputError, PluginError, UserError
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels
from minirlhf.signals import time_limit
from minirlhf.store import checkpoint
from minirlhf.store.files import MANIFEST, complete_directory
from minirlhf.text.comparisons import read_comparisons, read_demonstrations
from minirlhf.text.corpus import read_documents, read_prompts
from minirlhf.text.tokenizer import FILE, Tokenizer, train_tokenizer
from tests.fuzz.mutate import STRANGE, bytes_of, json_of, put
from tests.store.test_checkpoint import COMPONENTS, FACTS, fresh


def shares(few, all_of_them):
    """The number of cases in the default tests, and in `pytest -m fuzz`."""
    return pytest.mark.parametrize("count", [few, pytest.param(all_of_them, marks=pytest.mark.fuzz)])


@pytest.fixture(autouse=True)
def quiet(capfd):
    """No library below may print: a panic of a Rust core would."""
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def tried(kind, function, *arguments):
    """(what it says where it refuses by an error of this kind, what it returns where it accepts); any other exception
    is a failure, and so are two seconds."""
    fault = None
    try:
        with time_limit(2.0, "hangs"):
            return None, function(*arguments)
    except kind as refused:
        fault = str(refused)
    assert "\n" not in fault
    return fault, None


# ---- checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints of one run."""
    for steps in (2, 3):
        checkpoint.save_checkpoint(tmp_path, fresh(steps=steps), COMPONENTS, FACTS)
    return tmp_path


@shares(250, 10_000)
def test_a_changed_checkpoint_is_noticed_before_anything_of_it_is_read(saved, count):
    random, target = Random(0), fresh()
    older, path = checkpoint.all_of(saved)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    others = {p.name: p.read_bytes() for p in older.iterdir()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        name = random.choice([*before, MANIFEST])
        changed = bytes_of(before[name], random)
        if random.random() < 0.1 and others[name] != before[name]:  # a file of another step
            changed = others[name]
        file = path / name
        if random.random() < 0.05:
            file.unlink()
        else:
            put(file, changed)
        said, _ = tried(CheckpointError, checkpoint.load_checkpoint, path, target)
        assert said or whitespace(name, before, changed)
        assert checkpoint.newest(saved) == older or whitespace(name, before, changed)
        put(file, before[name])
    checkpoint.load_checkpoint(path, target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * memory


def whitespace(name, before, changed):
    """A manifest in which nothing but what JSON ignores is different."""
    try:
        return name == MANIFEST and json.loads(changed)["files"] == json.loads(before[name])["files"]
    except (ValueError, KeyError, TypeError):
        return False


@shares(40, 3_000)
def test_a_forged_checkpoint_is_refused_or_fits(saved, count):
    """With a manifest that fits, as whoever can write the files can make it: no exception but ours."""
    random = Random(1)
    path = checkpoint.all_of(saved)[-1]
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.name != MANIFEST}
    refused = 0
    for _ in range(count):
        name = random.choice(list(before))
        changed = bytes_of(before[name], random)
        if name == "state.json" and random.random() < 0.8:
            value = json_of(json.loads(before[name]), random)
            changed = json.dumps(value).encode(errors="surrogatepass")
        with complete_directory(path) as temporary:
            for file, content in before.items():
                (temporary / file).write_bytes(changed if file == name else content)
        target = fresh()
        said, _ = tried(CheckpointError, checkpoint.load_checkpoint, path, target)
        refused += said is not None
        if said is None:
            assert all(p.isfinite().all() for p in target.policy.parameters())
            assert target.step == 3
            assert all(type(x) is int and x >= 0 for x in (target.updates, target.episodes, target.tokens))
            assert math.isfinite(target.controller.beta)
    assert refused > count / 3


# ---- tokenizers -------------------------------------------------------------------------------------------


@shares(150, 2_000)
def test_a_changed_tokenizer_is_refused_or_still_says_every_text_again(tmp_path, count):
    random = Random(2)
    train_tokenizer(["the cat is good , the dog is bad ."] * 3, 300).save(tmp_path)
    file = tmp_path / FILE
    content = file.read_bytes()
    value, refused = json.loads(content), 0
    for _ in range(count):
        if random.random() < 0.6:
            put(file, json.dumps(json_of(value, random)).encode("utf-8", "surrogatepass"))
        else:
            put(file, bytes_of(content, random))
        said, tokenizer = tried(InputError, Tokenizer.load, tmp_path)
        refused += said is not None
        if said is None:
            for text in ("the cat é 数 \0", ""):
                assert tokenizer.decode(tokenizer.encode(text)) == text
    assert refused > count / 2


# ---- configurations ---------------------------------------------------------------------------------------


def random_config(random):
    """Sections and keys that exist, nearly exist or do not, with values of every kind."""
    whole = Config().model_dump(mode="json")
    table = {}
    for _ in range(random.randint(1, 5)):
        section = random.choice([*whole, "", "ppos", "RUN", "rewards"])
        keys = list(whole[section]) if isinstance(whole.get(section), dict) else []
        key = random.choice([*keys, "x", "lr ", "minibatchsize", ""])
        if random.random() < 0.2 and key:
            key = key[:-1]
        value = (
            copy.deepcopy(random.choice(STRANGE))
            if random.random() < 0.7
            else random.choice([0.1, 4, "k3", "gae", "both", 1024])
        )
        table.setdefault(section, {})
        if isinstance(table[section], dict) and random.random() < 0.95:
            table[section][key] = value
        else:
            table[section] = value
    return table


def as_toml(table, random):
    """As TOML, or as what is nearly TOML."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        if isinstance(value, list):
            return [plain(v) for v in value if v is not None]
        return value.encode(errors="replace").decode() if isinstance(value, str) else value

    content = tomli_w.dumps(plain(table)).encode()
    return bytes_of(content, random) if random.random() < 0.3 else content


@shares(80, 5_000)
def test_a_random_configuration_is_refused_in_full_or_means_what_it_says(tmp_path, count):
    random, file, accepted = Random(3), tmp_path / "c.toml", 0
    for _ in range(count):
        content = as_toml(random_config(random), random)
        put(file, content)
        said, found = tried(UserError, load_config, str(file))
        if said is None:
            accepted += 1
            config, table = found[0], tomllib.loads(content.decode())
            for section, values in table.items():
                for key, value in values.items() if isinstance(values, dict) else ():
                    kept = getattr(getattr(config, section), key, None)
                    changed = (
                        section in ("corpus", "rewards", "kl", "advantage", "loss") or key == "bases"
                    )  # paths, options
                    assert kept == value or changed, (section, key)
    assert 0 < accepted < count / 2


# ---- corpora ----------------------------------------------------------------------------------------------

READERS = (read_documents, read_prompts, read_comparisons, read_demonstrations)
ROWS = (
    {"text": "a b c ."}, {"prompt": "a", "n": 3}, {"prompt": "a", "chosen": " b", "rejected": " c", "margin": 0.5},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "a", "completion": "b"},
)  # fmt: skip


def random_corpus(random):
    """(ending, bytes): texts, rows and arrays of JSON, damaged or not, and plain junk."""
    rows = [random.choice(ROWS) for _ in range(random.randint(0, 6))]
    if random.random() < 0.6 and rows:
        rows = json_of(rows, random)
    lines = "\n".join(json.dumps(row) for row in rows) if isinstance(rows, list) else json.dumps(rows)
    ending, content = random.choice(
        [
            ("jsonl", lines.encode(errors="surrogatepass")),
            ("json", json.dumps(rows).encode(errors="surrogatepass")),
            ("txt", random.choice([b"a b .\nc d .\n", b"\xef\xbb\xbfa\r\nb\rc\n\n\nd", "数 é".encode(), b""])),
            ("parquet", b"PAR1" + random.randbytes(40) + b"PAR1"),
            ("txt", random.randbytes(random.randint(0, 80))),
        ]
    )
    return ending, bytes_of(content, random) if random.random() < 0.5 else content


@shares(250, 2_000)
def test_a_random_corpus_is_refused_with_its_place_or_read_as_text(tmp_path, count):
    random, read, refused = Random(4), 0, 0
    for number in range(count):
        ending, content = random_corpus(random)
        file = tmp_path / f"{number}.{ending}"
        file.write_bytes(content)
        for reader in READERS:
            said, found = tried(InputError, reader, str(file), random.choice(["strict", "replace"]))
            if said is not None:
                refused += 1
                assert str(file) in said, said
                continue
            read += 1
            rows = found[0] if isinstance(found, tuple) else found
            for row in rows:
                for name in ("text", "prompt", "chosen", "rejected", "completion"):
                    text = getattr(row, name, "")
                    assert isinstance(text, str)
                    text.encode()  # no lone surrogate
        file.unlink()
    assert min(read, refused) > count / 4


# ---- what rewards return ----------------------------------------------------------------------------------


def random_scores(random, n, tokens):
    """Something that a function could return for n completions, and whether it is what was asked for."""

    odd = [*STRANGE, 1e39, -1e39, object(), b"1", 1j, torch.ones(2, 2)]

    def one(index):
        usual = [0.5, 3, True, None, torch.tensor(1.5), torch.tensor(2, dtype=torch.int8), [0.1] * tokens[index % n]]
        return random.choice(odd if random.random() < 0.1 else usual)

    values = [one(i) for i in range(random.choice([n, n, n, n, n - 1, n + 1, 0]))]
    wrapped = random.choice([list, list, tuple, lambda v: v, lambda v: dict(enumerate(v)), iter, lambda v: [v]])
    return wrapped(values)


def is_fine(result, tokens):
    """The contract, in its own words: a list or tuple of n; each None, a number of at most 1e15, or as many such
    numbers as the completion has tokens."""

    def number(x):
        if isinstance(x, torch.Tensor):
            x = x.item() if x.ndim == 0 else x.tolist()
        return isinstance(x, bool | int | float) and math.isfinite(x) and abs(x) <= 1e15

    def row(x, count):
        if isinstance(x, torch.Tensor) and x.ndim:
            x = x.tolist()
        if isinstance(x, list | tuple):
            return len(x) == count and all(number(item) for item in x)
        return x is None or number(x)

    def safely(x, count):
        try:
            return row(x, count)
        except OverflowError:  # an int that no float holds
            return False

    if not isinstance(result, list | tuple) or len(result) != len(tokens):
        return False
    return all(safely(x, count) for x, count in zip(result, tokens, strict=True))


@shares(300, 1_000)
def test_what_a_reward_returns_is_used_exactly_if_it_keeps_the_contract(count):
    random, fine, tokens = Random(5), 0, [2, 1, 3]
    returned = []
    component = read_component("reward", "any", "a plugin", __file__, lambda completions: returned[0])
    models = RewardModels([("any", 1.0, component.build())])
    batch = RewardBatch(
        prompts=["p"] * 3, completions=["c"] * 3, prompt_ids=[[3]] * 3, columns={},
        completion_ids=[[3] * n for n in tokens], trainer_state=TrainerState(0, 1, 0.0),
    )  # fmt: skip
    for _ in range(count):
        returned[:] = [random_scores(random, 3, tokens)]
        expected = is_fine(returned[0], tokens)
        said, scores = tried(PluginError, partial(models.call, batch))
        assert (said is None) == expected, returned[0]
        fine += expected
        if expected:
            assert all(x is None or math.isfinite(x) for x in scores.total)
            assert len(scores.total) == 3
    assert count / 10 < fine < count * 0.9


def test_every_kind_of_refusal_was_ours():
    """The kinds that the cases above may raise are those that the command line turns into a line."""
    assert all(issubclass(kind, UserError) for kind in (CheckpointError, ConfigError, InputError, PluginError))
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
