"""What a user gets wrong: one line that names the file, key or plugin and says what to do, and an exit code.

The faults of plugins are provoked in the middle of a stack of three, two of them sound, so that naming "a plugin" is
not enough.
"""

import pytest

from tests.cli.calling import call, done, refused
from tests.plugins.files import reward_plugin, write

FAULTY = {
    "a misspelt hook": (
        "@hookimpl\ndef register_reward_model():\n    return {}\n",
        ("register_reward_model", "register_reward_models"),
    ),
    "an unknown input": (
        "def second(completions, answer):\n    return [0.0 for _ in completions]\n",
        ("answer",),
    ),
    "a wrong length": ("def second(completions):\n    return [0.0]\n", ("1 ", "8")),
    "NaN": ("def second(completions):\n    return [float('nan') for _ in completions]\n", ("nan",)),
    "strings instead of numbers": ("def second(completions):\n    return ['good' for _ in completions]\n", ("str",)),
    "an exception": ("def second(completions):\n    raise KeyError('lexicon')\n", ("KeyError", "lexicon")),
    "an exception in a coroutine": (
        "async def second(completions):\n    raise OSError('no route to host')\n",
        ("OSError", "no route to host"),
    ),
    "an import that fails": ("import there_is_no_such_module\n", ("there_is_no_such_module",)),
    "a syntax error": ("def second(completions)\n    return 1\n", ("SyntaxError", "line 2")),
}
REGISTER = "\n@hookimpl\ndef register_reward_models():\n    return {'second': second}\n"


def stack(folder, source):
    """Arguments that load three plugins, the second with this source, and use a reward of each."""
    files = [reward_plugin(folder, "first"), write(folder, "second", source), reward_plugin(folder, "third")]
    used = [n for n in ("first", "second", "third") if n != "second" or "def second" in source]
    return [*(p for f in files for p in ("--plugin", f)), *(p for name in used for p in ("--reward", name))]


@pytest.mark.parametrize("fault", FAULTY)
def test_the_right_plugin_of_three_is_named(fault, tiny, tmp_path):
    source, said = FAULTY[fault]
    source += REGISTER if "def second" in source and "hookimpl" not in source else ""
    out = tmp_path / "run"
    text = refused(5, "run", *tiny, *stack(tmp_path, source), "--out", out, said=("second", *said))
    assert "first" not in text.replace(str(tmp_path), "")
    assert "third" not in text.replace(str(tmp_path), "")
    assert not (out / "model").exists()
    assert not (out / "evaluation.json").exists()


def test_an_unknown_option_is_a_fault_of_the_configuration(tiny, tmp_path):
    source = "def second(completions, *, target: int = 3):\n    return [0.0 for _ in completions]\n" + REGISTER
    arguments = [*tiny, *stack(tmp_path, source), "--out", tmp_path / "run"]
    refused(2, "run", *arguments, "--set", "rewards.second.traget=4", said=("rewards.second.traget", "target", "--set"))
    refused(2, "run", *arguments, "--set", "rewards.second.target=many", said=("rewards.second.target", "int"))
    assert not (tmp_path / "run").exists()


def test_a_reward_that_breaks_later_leaves_what_was_learned_before(tiny, tmp_path):
    """Good for the first iteration and the samples of it; the error says which iteration it was."""
    source = (
        "def second(completions, trainer_state):\n"
        "    return [0.0] * (len(completions) - trainer_state.global_step)\n" + REGISTER
    )
    out = tmp_path / "run"
    result = call("run", *tiny, *stack(tmp_path, source), "--set", "run.checkpoint_every=1", "--out", out)
    assert result.code == 5
    (line,) = result.errors
    assert "second" in line
    assert line.startswith("error: step 2: ")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000001"]
    assert not (out / "model").exists()


def test_an_estimator_of_the_wrong_shape_is_named_beside_sound_ones(tiny, tmp_path):
    bad = """
        def flat(logprobs, ref_logprobs):
            return (logprobs - ref_logprobs).sum(dim=1)

        @hookimpl
        def register_kl_estimators():
            return {"flat": flat}
    """
    plugins = [reward_plugin(tmp_path, "first"), write(tmp_path, "second", bad), reward_plugin(tmp_path, "third")]
    arguments = [p for f in plugins for p in ("--plugin", f)]
    refused(5, "run", *tiny, *arguments, "--kl", "flat", "--out", tmp_path / "run", said=("second", "flat", "shape"))


# ---- the other exit codes, as docs/exit-codes.md shows them --------------------------------------------------------


def test_a_value_of_the_wrong_type_names_the_key_and_where_it_came_from(tmp_path):
    refused(2, "run", "--set", "ppo.lr=fast", said=("ppo.lr", "--set", "number"))
    (tmp_path / "mine.toml").write_text("[ppo]\niteratons = 3\n")
    refused(2, "run", tmp_path / "mine.toml", said=("ppo.iteratons", "mine.toml", "iterations"))


def test_every_fault_of_a_configuration_is_a_line(tmp_path):
    refused(2, "run", "--set", "ppo.lr=fast", "--set", "kl.coef=-1", "--loss", "pppo", lines=3,
            said=("ppo.lr", "kl.coef", "loss.policy", "ppo_clip"))  # fmt: skip


def test_divergence_is_3_and_saves_no_model(tiny, tmp_path):
    refused(3, "run", *tiny, "--set", "ppo.lr=1e18", "--set", "ppo.epochs=2", "--out", tmp_path / "run",
            said=("not finite", "learning rate"))  # fmt: skip
    refused(
        3,
        "run",
        *tiny,
        "--set",
        "pretrain.lr=1e6",
        "--out",
        tmp_path / "other",
        said=("pretraining", "step", "pretrain.lr"),
    )
    assert not (tmp_path / "run" / "model").exists()


def test_a_damaged_model_is_4(finished, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(4, "sample", run, "the cat", said=(str(weights),))


def test_a_plugin_that_does_not_exist_is_5():
    refused(5, "run", "--plugin", "missing.py", said=("missing.py",))


def test_a_place_that_cannot_be_written_is_6(tiny):
    refused(6, "run", *tiny, "--out", "/proc/x", said=("/proc/x", "cannot write"))


def test_text_that_is_none_names_the_file_and_the_line(tiny, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes("ein Café\nzwei Café\n".encode("latin-1"))
    refused(2, "run", *tiny, "--set", f"corpus.text={bad}", "--out", tmp_path / "run", said=(f"{bad}:1", "UTF-8"))
    bad.write_bytes(b"")
    refused(2, "run", *tiny, "--set", f"corpus.text={bad}", "--out", tmp_path / "run", said=(str(bad), "empty"))
    refused(2, "run", *tiny, "--set", "corpus.text=/no/where.txt", "--out", tmp_path / "run", said=("/no/where.txt",))
    assert not (tmp_path / "run").exists()


def test_a_column_with_the_name_of_an_input_is_refused(tiny, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat", "completions": "x"}\n' * 12)
    refused(2, "run", *tiny, "--set", f"corpus.prompts={prompts}", "--out", tmp_path / "run",
            said=(str(prompts), "completions"))  # fmt: skip


def test_a_text_without_a_prompt_is_an_error_before_anything_is_trained(tiny, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "hello"}\n')
    refused(2, "run", *tiny, "--set", f"corpus.text={text}", "--out", tmp_path / "run",
            said=("there is no prompt", str(text), "corpus.prompts"))  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_all_too_long_are_an_error(tiny, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join("the cat is good today . " * 20 + str(n) for n in range(12)))
    result = call("run", *tiny, "--set", f"corpus.prompts={prompts}", "--out", tmp_path / "run")
    assert result.code == 2
    assert len(result.errors) == 1
    assert "prompts.txt" in result.errors[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rn"], ("there is no command 'rn'", "run")),
        (["run", "reveiws"], ("reveiws", "reviews")),
        (["run", "--kll", "k1"], ("--kll", "--kl")),
        (["run", "--reward", "sentimant"], ("sentimant", "sentiment")),
        (["plugins", "show", "gea"], ("gea", "gae")),
        (["sample", "/no/run"], ("/no/run", "run directory")),
        (["evaluate", "/no/run"], ("/no/run", "run directory")),
        (["run", "--set", "lr"], ("lr", "key=value")),
        (["run", "--device", "tpu"], ("tpu",)),
        (["run", "--seed", "-1"], ("seed",)),
    ],
)
def test_usage(arguments, said):
    refused(2, *arguments, said=said)


@pytest.fixture
def broken_package(tmp_path, monkeypatch):
    """An installed plugin that cannot be imported."""
    info = tmp_path / "sad_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sad-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[minirlhf]\nsad = sad_plugin_that_is_gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MINIRLHF_LOAD_PLUGINS", raising=False)


COMMANDS = (
    "run {tiny} --out {new}", "run --resume {run}", "pretrain {tiny}", "evaluate {run}", "sample {run} the -n 1",
    "plugins list", "plugins show gae", "config show",
    "config schema",
)  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_a_broken_package_with_an_entry_point_is_one_warning(line, broken_package, tiny, finished, tmp_path):
    """It must not stop a command that does not use it."""
    known = {"{tiny}": tiny, "{run}": [finished[0]], "{new}": [tmp_path / "new"]}
    arguments = [part for word in line.split() for part in known.get(word, [word])]
    result = done(*arguments)
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ") and "sad" in line]
    assert len(warnings) == (0 if line == "config schema" else 1)


def test_a_number_of_an_option_is_shown_as_it_is_written():
    refused(2, "compare", "tiny", "--seeds", "1e1", said=("'1e1' is not a valid integer", "Write 10."))
    refused(2, "overoptimise", "--coefs", "0.1,1:5", said=("'1:5' is not a valid float",))


def test_a_home_behind_an_equals_sign_is_found_as_the_shell_finds_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    refused(2, "run", "--resume=~/run", said=(str(tmp_path / "run"),))


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward-model"])
def test_a_stage_does_not_ask_for_the_plugins_of_the_loop(command, tiny, tmp_path):
    """The file of a reward that has moved away is no obstacle to what needs no reward."""
    config, rows = tmp_path / "c.toml", tmp_path / "rows.jsonl"
    gone = '[rewards.gone]\nuse = "./gone.py:gone"\n[kl]\nestimator = "./gone.py:kl"\n'
    config.write_text(f'plugins = ["./gone.py"]\n[run]\npreset = "tiny"\n{gone}')
    rows.write_text(
        "".join(f'{{"prompt": "the cat {i}", "chosen": " is good", "rejected": " is bad"}}\n' for i in range(8))
    )
    few = ("pretrain.steps=20", "sft.epochs=1", "reward_model.epochs=1", "reward_model.samples=2")
    short = [part for value in few for part in ("--set", value)]
    out = ("--out", tmp_path / "rm") if command == "reward-model" else ()
    done(command, *([] if command == "pretrain" else [rows]), config, *tiny[1:], *short, *out)
    refused(5, "run", config, *tiny[1:], said=("gone.py",))
