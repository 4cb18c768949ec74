"""Configurations: layers, where a value came from, every fault at once, and what is written can be read again."""

import json
import tomllib

import pytest

from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.config.toml import dump_toml, json_schema, preset_names, to_dict
from minirlhf.config.values import toml_value
from minirlhf.errors import ConfigError, UsageError
from tests.plugins.files import reward_plugin


def loaded(*arguments, **named):
    return load_config(*arguments, **named)[0]


def faults(*arguments, **named):
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **named)
    return caught.value.faults


# ---- layers ------------------------------------------------------------------------------------------------


def test_a_later_layer_wins(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[ppo]\nlr = 1e-4\nepochs = 3\niterations = 9\n")
    config = loaded(str(file), options={"ppo.epochs": 5, "ppo.iterations": 7}, sets=["ppo.iterations=8"])
    assert (config.ppo.lr, config.ppo.epochs, config.ppo.iterations) == (1e-4, 5, 8)
    assert config.ppo.grad_clip == Config().ppo.grad_clip


def test_a_file_knows_nothing_of_the_presets(tmp_path):
    """It lays itself on the defaults: `tiny` does not shine through."""
    file = tmp_path / "mine.toml"
    file.write_text("")
    plain = loaded(str(file))
    assert plain.model == Config().model
    assert plain.run.preset == "mine"


def test_rewards_of_a_file_replace_the_default_set_and_those_of_the_command_line_the_files(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[rewards.short]\nuse = "length"\ntarget = 5\nweight = 2.0\n[rewards.repetition]\n')
    assert list(loaded(str(file)).rewards) == ["short", "repetition"]
    kept = loaded(str(file), rewards=["short", "sentiment=0.5"]).rewards
    assert list(kept) == ["short", "sentiment"]
    assert (kept["short"].use, kept["short"].options, kept["short"].weight) == ("length", {"target": 5}, 2.0)
    assert kept["sentiment"].weight == 0.5


def test_another_component_drops_the_options_of_the_one_before(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[advantage]\nlam = 0.5\nwhiten = 'none'\n")
    assert loaded(str(file)).advantage.options == {"lam": 0.5}
    changed = loaded(str(file), options={"advantage.function": "mc"}).advantage
    assert (changed.options, changed.whiten) == ({}, "none")


def test_paths_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    reward_plugin(tmp_path / "deep", "mine")
    file = tmp_path / "deep" / "mine.toml"
    file.write_text('plugins = ["mine.py"]\n[corpus]\ntext = "text.txt"\n[rewards.r]\nuse = "mine.py:mine"\n')
    monkeypatch.chdir(tmp_path)
    config = loaded("deep/mine.toml", sets=["corpus.prompts=here.txt"])
    assert config.corpus.text == str(tmp_path / "deep" / "text.txt")
    assert config.corpus.prompts == str(tmp_path / "here.txt")
    assert config.plugins == (str(tmp_path / "deep" / "mine.py"),)
    assert config.rewards["r"].use == f"{tmp_path}/deep/mine.py:mine"
    assert loaded().corpus.text == "reviews"  # the name of a corpus that comes with the program stays


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("3e-4", 3e-4), ("true", True), ("[1, 2]", [1, 2]), ('"3"', "3"), ("mine.txt", "mine.txt"), ("", ""),
     ("1\nx = 2", "1\nx = 2"), ("a=b", "a=b")],
)  # fmt: skip
def test_values_of_set_are_toml_or_text(text, value):
    assert toml_value(text) == value


# ---- faults ------------------------------------------------------------------------------------------------


def test_all_faults_at_once_each_with_its_key_and_where_it_came_from(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[ppo]\niteratons = 3\nlr = 'fast'\n")
    found = faults(str(file), sets=["kl.coef=-1"], options={"loss.policy": "ppo_clp"})
    assert len(found) == 4
    one = {text.partition(" ")[0]: text for text in found}
    assert "did you mean 'iterations'" in one["ppo.iteratons"]
    assert str(file) in one["ppo.lr"]
    assert "--set" in one["kl.coef"]
    assert "ppo_clip" in one["loss.policy"]
    assert "--policy" in one["loss.policy"] or "--loss" in one["loss.policy"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["ppo.minibatch_size=256"], "ppo.minibatch_size"),
        (["ppo.micro_batch_size=64"], "ppo.micro_batch_size"),
        (["kl.controller=adaptive"], "kl.target"),
        (["kl.target=6.0"], "kl.controller"),
        (["model.heads=5"], "model.heads"),
        (["model.kv_heads=3"], "model.kv_heads"),
        (["sampler.max_new_tokens=127"], "sampler.max_new_tokens"),
        (["model.max_positions=100"], "pretrain.sequence_length"),
        (["truncation.rule=penalty"], "truncation.value"),
        (["truncation.value=1.0"], "truncation.value"),
        (["corpus.heldout_prompts=a.txt"], "corpus.heldout_prompts"),
        (["sampler.top_k=5"], "minirlhf sample"),
        (["ppo.lr=nan"], "ppo.lr"),
        (["ppo.lr=inf"], "ppo.lr"),
        (["ppo.lr=0"], "ppo.lr"),
        (["ppo.epochs=1.5"], "ppo.epochs"),
        (['ppo.epochs="3"'], "remove the quotes"),
        (["ppo=3"], "ppo"),
        (["ppo.lr.x=3"], "ppo.lr"),
        (["rewards.sentiment.scale=big"], "rewards.sentiment.scale"),
        (["advantage.lambda=0.5"], "lam"),
        (["run.observers=['csv_lg']"], "run.observers"),
        (["=3"], "key=value"),
    ],
)
def test_a_fault_names_its_key(sets, said):
    assert any(said in fault for fault in faults(sets=sets))


def test_a_preset_that_does_not_exist_names_the_nearest():
    with pytest.raises(UsageError, match="'reviews'"):
        load_config("reveiws")


@pytest.mark.parametrize("content", [b"[ppo\n", b"\xff\xfe\x00", b"a = " + b"[" * 5000, b"x" * (2 << 20)])
def test_a_file_that_is_no_toml_is_one_line_with_its_name(content, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    (fault,) = faults(str(file))
    assert str(file) in fault
    assert "\n" not in fault


# ---- out and in again --------------------------------------------------------------------------------------

AWKWARD = [
    "ppo.micro_batch_size=8", "kl.controller=adaptive", "kl.target=6.5", "rewards.sentiment.scale=3.0",
    "corpus.text=/tmp/wo\"rt \\ 'x'.txt", "truncation.rule=penalty", "truncation.value=-1.0", "run.observers=[]",
]  # fmt: skip


@pytest.mark.parametrize("preset", [*preset_names(), None])
def test_what_is_written_loads_to_an_equal_config(preset, tmp_path):
    config = loaded(preset, sets=AWKWARD if preset is None else [])
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config), encoding="utf-8")
    assert loaded(str(file)) == config


OPTIONS = ("lam", "gamma", "clip")  # of components: the schema lets a section have more keys


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_fits_the_schema_and_every_key_is_described(preset):
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    for section, values in to_dict(loaded(preset)).items():
        assert section in schema["properties"], section
        name = schema["properties"][section].get("$ref", "").rpartition("/")[2]
        if name:
            known = schema["$defs"][name]["properties"]
            assert all(
                key in known and known[key]["description"] for key in values if key not in ("lam", "gamma", "clip")
            )


def test_the_file_of_the_default_preset_is_the_defaults():
    config = loaded("reviews").model_copy(update={"run": Config().run})
    assert config == Config()
    assert tomllib.loads(dump_toml(Config()))["ppo"]["lr"] == Config().ppo.lr


# ---- combinations that are refused --------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["rloo", "grpo", "dr_grpo"])
def test_a_function_of_groups_needs_groups(function):
    (fault,) = faults(sets=[f"advantage.function={function}"])
    assert fault.startswith("ppo.responses_per_prompt = 1")
    assert f"{function} compares the responses to one prompt: set it to 2 or more" in fault


@pytest.mark.parametrize(
    ("sets", "path"),
    [
        (["truncation.rule=bootstrap", "advantage.function=reward_to_go"], "truncation.rule"),
        (["ppo.critic_warmup=3", "advantage.function=reward_to_go"], "ppo.critic_warmup = 3"),
        (["loss.penalty_target=0.1"], "loss.penalty_target = 0.1"),
        (["loss.policy=ppo_penalty", "loss.penalty_target=0.1", "loss.penalty=0.0"], "loss.penalty = 0"),
        (["kl.controller=adaptive", "kl.target=6.0", "kl.coef=0.0"], "kl.coef = 0"),
        (["exact.problem=nonaditive"], "exact.problem = 'nonaditive'"),
        (["exact.problem=delayed", "sampler.max_new_tokens=3"], "sampler.max_new_tokens = 3"),
        (["exact.problem=delayed", "kl.controller=adaptive", "kl.target=6.0"], "kl.controller = 'adaptive'"),
        (["exact.problem=delayed", "corpus.prompts=x.jsonl"], "corpus.prompts"),
    ],
)
def test_what_cannot_work_together_is_refused(sets, path):
    (fault,) = faults(sets=sets)
    assert fault.startswith(path)


def test_a_problem_brings_what_is_part_of_it_unless_it_is_set():
    config = loaded("exact", sets=["exact.problem=delayed"])
    assert (config.kl.coef, config.sampler.max_new_tokens, config.sampler.temperature) == (0.5, 6, 1.0)
    assert list(config.rewards) == ["problem"]
    other = loaded("exact", sets=["kl.coef=0.2"])
    assert (other.kl.coef, other.sampler.max_new_tokens) == (0.2, 3)


# ---- what a configuration cannot hold ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "held"), [(3.4028234663852886e38, True), (3.41e38, False), (1e-45, False), (-1e39, False)]
)
def test_a_number_that_float32_cannot_hold_is_refused_by_its_key(value, held):
    """Its largest number is (2 - 2^-23) 2^127 = 3.4028235e38, its smallest 2^-149 = 1.4e-45."""
    if held:
        assert loaded("tiny", sets=[f"rewards.sentiment.weight={value}"]).rewards["sentiment"].weight == value
        return
    (fault,) = faults("tiny", rewards=[f"length={value}"])
    assert fault.startswith(f"rewards.length.weight = {value} (--reward): float32")


def test_numbers_of_every_section_are_held_by_float32():
    found = faults(
        "tiny", sets=["kl.coef=1e39", "ppo.adam_eps=1e-50", "loss.entropy_coef=1e300", "sft.weight_decay=1e39"]
    )
    assert [fault.split(" ")[0] for fault in found] == [
        "sft.weight_decay",
        "kl.coef",
        "loss.entropy_coef",
        "ppo.adam_eps",
    ]


def test_a_current_directory_whose_name_is_not_utf_8(tmp_path, monkeypatch):
    try:
        (tmp_path / "n\udcff").mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    monkeypatch.chdir(tmp_path / "n\udcff")
    (fault,) = faults("tiny")
    assert fault.startswith("run.bases: holds a NUL, or bytes that are not UTF-8")
    assert loaded("tiny", sets=[f"run.bases={tmp_path}"]).run.bases == str(tmp_path)
