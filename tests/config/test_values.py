"""Values as people type them: taken, or refused by a message that shows how exactly that is written."""

import shlex

import pytest

from minirlhf.config.layers import load_config
from minirlhf.config.values import advice, parsed, respelled, setting, toml_value
from minirlhf.errors import ConfigError
from minirlhf.studies.grid import variations


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".5", 0.5), ("+.5", 0.5), ("-.5", -0.5), ("1.", 1.0), ("1_000.", 1000.0), ("1.e3", 1000.0), (".5E-1", 0.05),
        ("+1", 1), ("1_000", 1000), ("1e-3", 0.001), (" 0.001 ", 0.001), ("\ufeff3", 3),
        ("007", "007"), ("00.5", "00.5"), (".", "."), ("1,5", "1,5"), ("3e", "3e"), ("1__0", "1__0"),
        ("\u0663", "\u0663"),
        ("True", "True"), (" a b.txt ", "a b.txt"), ('" a "', " a "), ("2026-01-31", "2026-01-31"), ("~/a", "~/a"),
    ],
)  # fmt: skip
def test_numbers_are_taken_as_everybody_writes_them_and_all_else_is_text(text, value):
    found = toml_value(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("ppo.lr=1", ("ppo.lr", 1)), (" ppo.lr = .5 ", ("ppo.lr", 0.5)), ("\ufeffa=b=c", ("a", "b=c")), ("a=", ("a", "")),
     ("a", None), ("=3", None), ("a..b=3", None), (".a=3", None)],
)  # fmt: skip
def test_a_setting_is_a_key_and_a_value(text, found):
    assert setting(text) == found


@pytest.mark.parametrize(
    ("value", "kind", "written"),
    [
        ("007", "number", "7"), ("-007.5", "number", "-7.5"), ("000", "integer", "0"), ("1,5", "number", "1.5"),
        ("1,000", "number", None), ("\uff10\uff0e\uff15", "number", "0.5"), ("\u22121", "number", "-1"),
        ("3e", "number", None), ("", "number", None), ("inf", "number", None), (True, "number", None),
        (["a"], "number", None),
        (1000.0, "integer", "1000"), (2.5, "integer", None), ("1e3", "integer", "1000"), ("5m", "number", None),
        ("True", "boolean", "true"), ("no", "boolean", "false"), (1, "boolean", "true"), ("maybe", "boolean", None),
        (5, "string", '"5"'), (0.5, "string", '"0.5"'), (True, "string", '"true"'), ({}, "string", None),
        ("a", "array", '["a"]'), ("a, b", "tuple", '["a", "b"]'), ("[a,'b']", "list", '["a", "b"]'), ("", "list", "[]"),
        ("1,.5", "list", '["1", ".5"]'), (3, "list", '["3"]'), ({}, "list", None),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_spelled_as_the_right_one(value, kind, written):
    assert respelled(value, kind) == written
    if written is not None:
        kinds = {"number": (int, float), "integer": int, "boolean": bool, "string": str}
        assert isinstance(parsed(written), kinds.get(kind, list))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", "30"), ("5m", "300"), ("1.5 h", "5400"), ("500ms", "0.5"), ("s", None)]
)
def test_a_duration_is_spelled_in_the_seconds_of_its_key(text, seconds):
    assert respelled(text, "number", seconds=True) == seconds


REFUSED = (
    ("ppo.lr=007", "ppo.lr=7"), ("ppo.lr=1,5", "ppo.lr=1.5"), ("ppo.score_normalize=True", "ppo.score_normalize=true"),
    ("ppo.epochs=2e0", "ppo.epochs=2"), ("run.reward_timeout_s=2m", "run.reward_timeout_s=120"),
    ("corpus.text=.5", 'corpus.text=".5"'), ("run.observers=tensorboard", 'run.observers=["tensorboard"]'),
    ("rewards.sentiment.scale=007", "rewards.sentiment.scale=7"),
    ("rewards.sentiment.normalize=on", "rewards.sentiment.normalize=true"),
)  # fmt: skip


@pytest.mark.parametrize(("typed", "written"), REFUSED)
def test_what_a_refusal_shows_is_accepted(typed, written):
    with pytest.raises(ConfigError) as caught:
        load_config(sets=[typed])
    (fault,) = caught.value.faults
    assert "quotes" not in fault
    shown = shlex.split(fault.partition("; write ")[2])
    assert shown == ["--set", written]
    load_config(sets=[shown[1]])


def test_a_list_of_numbers_is_spelled_as_one():
    assert respelled("1,.5", "list", numbers=True) == "[1, 0.5]"
    assert respelled("1,inf", "list", numbers=True) is None
    assert advice("a.b", 3, "expected list[float], input should be a valid list", "") == "; write [3]"


def test_quotes_are_to_be_removed_where_there_are_some_and_the_rest_is_right():
    number = "input should be a valid number"
    assert advice("ppo.lr", "1e-3", number, "--set") == "; this is a string: remove the quotes"
    assert advice("ppo.lr", ".5", number, "a.toml") == "; write 0.5"
    assert advice("ppo.lr", "true", number, "--set") == ""
    assert advice("a.b", "true", "input should be a valid boolean", "") == "; this is a string: remove the quotes"
    assert advice("run.observers.0", None, "input should be a valid string", "--set") == ""
    assert advice("ppo.lr", -1, "input should be greater than 0", "--set") == ""


def test_weights_of_rewards_and_values_to_vary_are_typed_alike():
    config, _ = load_config(rewards=["sentiment=.5", " length = +1 "])
    assert {label: reward.weight for label, reward in config.rewards.items()} == {"sentiment": 0.5, "length": 1.0}
    with pytest.raises(ConfigError, match=r"rewards\.sentiment\.weight = '1,5' \(--reward\).*; write 1\.5"):
        load_config(rewards=["sentiment=1,5"])
    assert variations(["\ufeffkl.coef = .1, 1. "]) == {"kl.coef": [".1", "1."]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[ppo]\nlr = .5 # half\n", "write lr = 0.5"),
        ("[ppo]\nscore_normalize = True\n", "write score_normalize = true"),
        ("[ppo]\nepochs = 007", "write epochs = 7"),
        ("[ppo]\nlr x = 5\n", None),
        ("[ppo", None),
    ],
)
def test_a_file_that_holds_a_number_as_toml_does_not_write_it_is_told_how(content, line, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    assert ("write" in str(caught.value)) == (line is not None)
    assert line is None or str(caught.value).endswith(f"; {line}")


def test_a_byte_order_mark_is_no_letter_of_a_configuration(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("\ufeff[ppo]\nlr = 0.5\n\ufeff[corpus]\ntext = '\ufeffa.txt'\n", encoding="utf-8")
    config, _ = load_config(str(file), sets=["\ufeffppo.epochs=\ufeff3"], rewards=["\ufeffsentiment=2"])
    assert (config.ppo.lr, config.ppo.epochs, config.corpus.text) == (0.5, 3, str(tmp_path / "a.txt"))
    assert list(config.rewards) == ["sentiment"]


def test_a_home_is_found_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sets = ["corpus.text=~/a b.txt", "run.bases=~/bases", "rewards.trained.path=~/rm"]
    config, _ = load_config(sets=sets)
    assert (config.corpus.text, config.run.bases) == (f"{tmp_path}/a b.txt", f"{tmp_path}/bases")
    assert config.rewards["trained"].options["path"] == f"{tmp_path}/rm"
