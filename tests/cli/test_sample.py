"""`minirlhf sample` over the stages of a run: the same random numbers, scores, and text that is only text."""

import shutil
from types import SimpleNamespace

import pytest

from minirlhf.cli import sample
from tests.cli.calling import done, refused
from tests.cli.test_sft import demonstrations

REWARDS = """
def letters(completions):
    return [float(len(text)) for text in completions]

def short(completions):
    return [None if len(text) > 15 else 0.5 for text in completions]
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    return f"{tmp_path}/mine.py"


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """A run that began with demonstrations, and the directory of its bases."""
    folder = tmp_path_factory.mktemp("tuned")
    shown = demonstrations(folder / "shown.jsonl")
    sets = (f"run.bases={folder / 'bases'}", f"corpus.demonstrations={shown}", "sft.epochs=4", "sft.lr=1e-2")
    done("run", *tiny, *(p for s in (*sets, "ppo.lr=1e-2") for p in ("--set", s)), "--out", folder / "run")
    return folder / "run", folder / "bases"


def base_of(bases):
    """The directory of the one base there."""
    (base,) = [path for path in bases.iterdir() if path.is_dir() and not path.name.startswith((".", "sft-"))]
    return base


def by_side(*arguments):
    """Completions of each side."""
    found = {}
    for row in done("sample", *arguments, "--json").events:
        found.setdefault(row["from"], []).append(row["completion"])
    return found


def test_sides_use_the_same_random_numbers_and_stand_next_to_each_other(finished):
    run = finished[0]
    sides = ("--from", "policy", "--from", "base", "--from", "reference", "--from", "policy")
    rows = done("sample", run, "the cat", "-n", 3, *sides, "--temperature", 0.9, "--json").events
    assert [row["from"] for row in rows] == ["policy", "base", "reference"] * 3
    assert all(row["prompt"] == "the cat" and "scores" not in row for row in rows)
    found = by_side(run, "the cat", "-n", 3, *sides, "--temperature", 0.9)
    assert found["base"] == found["reference"] != found["policy"]  # without demonstrations they are one model
    for side in found:
        assert by_side(run, "the cat", "-n", 3, "--from", side, "--temperature", 0.9) == {side: found[side]}
    assert by_side(run, "the cat", "-n", 3, "--temperature", 0.9) == {"policy": found["policy"]}


def test_base_and_sft_of_a_run_with_demonstrations(tuned):
    sides = [part for side in sample.SIDES for part in ("--from", side)]
    found = by_side(tuned[0], "the cat", "-n", 4, *sides)
    assert found["sft"] == found["reference"]
    assert len({tuple(texts) for texts in found.values()}) == 3


def test_a_base_that_is_gone_or_damaged_is_one_line(tuned, tmp_path):
    run, bases = tuned
    moved = ("--set", f"run.bases={tmp_path}")
    assert done("sample", run, "the cat", "--from", "sft", *moved).out
    refused(
        2, "sample", run, "the cat", "--from", "base", *moved, said=("base of this run is not there", str(tmp_path))
    )
    base = base_of(bases)
    shutil.copytree(base, tmp_path / base.name)
    assert by_side(run, "the cat", "--from", "base", *moved) == by_side(run, "the cat", "--from", "base")
    weights = tmp_path / base.name / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(4, "sample", run, "the cat", "--from", "base", *moved, said=(str(tmp_path / base.name),))


def test_a_base_that_was_made_of_another_text_is_not_shown(tuned, tiny, tmp_path):
    other = ("--set", f"run.bases={tmp_path}", "--set", "tokenizer.vocab_size=300", "--set", "pretrain.steps=1")
    done("pretrain", *tiny, *other)
    base_of(tmp_path).rename(tmp_path / base_of(tuned[1]).name)
    moved = ("--set", f"run.bases={tmp_path}")
    refused(2, "sample", tuned[0], "the cat", "--from", "base", *moved, said=("not there any more",))


def test_scores_come_first_and_their_means_last(finished, mine):
    rewards = ("--reward", f"{mine}:letters", "--reward", f"{mine}:short=2", "--max-new-tokens", 3)
    rows = done("sample", finished[0], "the cat", "-n", 4, *rewards, "--seed", 3, "--json").events
    lengths = [len(row["completion"]) for row in rows]
    shorts = [None if length > 15 else 0.5 for length in lengths]
    assert 0 < shorts.count(None) < 4  # so that both kinds are shown below
    assert [row["scores"] for row in rows] == [
        {"letters": length, "short": short} for length, short in zip(lengths, shorts, strict=True)
    ]
    *lines, empty, means = done("sample", finished[0], "the cat", "-n", 4, *rewards, "--seed", 3).out.splitlines()
    for line, row, short in zip(lines, rows, shorts, strict=True):
        mark = "-" if short is None else "+0.50"
        assert line.startswith(f"letters {len(row['completion']):+.2f}  short {mark}  the cat")
    assert (empty, means) == ("", f"   policy  letters {sum(lengths) / 4:+.2f}  short +0.50  mean of 4")
    (one,) = done("sample", finished[0], "the cat", "--reward", "length").out.splitlines()
    assert one.startswith("length +0.")


def test_means_are_of_what_was_given(capsys):
    sample.show_means({"base": {"a": [0.0, 1.0, None], "b": [None, None, None]}, "policy": {}})
    assert capsys.readouterr().out == "\n     base  a +0.50  b -  mean of 3\n"


def test_without_rewards_the_policy_alone_is_a_line_a_completion(finished):
    lines = done("sample", finished[0], "the cat", "-n", 3).out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("the cat") for line in lines)


LEFT = SimpleNamespace(completions=(" [bold]one[/bold]\x1b[31m", ""))
RIGHT = SimpleNamespace(completions=(" two words", "four"))
GIVEN = {"base": {"a": [0.5, None]}, "policy": {"a": [-1.0, 2.0]}}


def shown(monkeypatch, capsys, width):
    monkeypatch.setattr(sample, "columns", lambda: width)
    sample.show_sides("say", {"base": LEFT, "policy": RIGHT}, GIVEN)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_in_a_pipe_a_completion_is_a_line_of_its_side(monkeypatch, capsys):
    assert shown(monkeypatch, capsys, None) == [
        "say ...",
        "",
        "     base  a +0.50  [bold]one[/bold]\\x1b[31m",
        "   policy  a -1.00  two words",
        "",
        "     base  a -  (nothing)",
        "   policy  a +2.00  four",
    ]


def test_a_narrow_terminal_wraps_the_lines(monkeypatch, capsys):
    lines = shown(monkeypatch, capsys, 26)
    assert next(line for line in lines if "policy" in line) == "   policy  a -1.00  two"
    assert "           words" in lines


def test_a_wide_terminal_has_a_column_a_side_and_reads_no_markup(monkeypatch, capsys):
    lines = shown(monkeypatch, capsys, 60)
    assert [line.split() for line in lines if line.strip(" ─")] == [
        ["say", "..."],
        ["base", "policy"],
        ["a", "+0.50", "a", "-1.00"],
        ["[bold]one[/bold]\\x1b[31m", "two", "words"],
        ["a", "-", "a", "+2.00"],
        ["(nothing)", "four"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--from", "nowhere"], 2, ("nowhere", "sft")),
        (["--from", "sft"], 2, ("had no demonstrations", "--from sft")),
        (["--reward", "sentimant"], 2, ("sentimant", "sentiment")),
        (["--reward", "problem"], 5, ("unknown input 'exact_problem'",)),
        (["--reward", "keywords"], 5, ("keywords", "words")),
        (["--plugin", "missing.py"], 5, ("missing.py",)),
        (["--temperature", "1e-5"], 2, ("--temperature", "0 is greedy")),
    ],
)
def test_what_cannot_be_sampled_is_refused(arguments, code, said, finished):
    refused(code, "sample", finished[0], "the cat", *arguments, said=said)


def test_a_reward_with_a_memory_judges_every_side_for_itself(finished):
    """Greedy completions of one model are the same text on both sides, so the reward must say the same of them."""
    novelty = ("--plugin", "plugins/novelty.py", "--reward", "novelty", "--temperature", 0)
    events = done("sample", finished[0], "the", "--from", "reference", "--from", "base", *novelty, "--json").events
    assert events[0]["completion"] == events[1]["completion"]
    assert events[0]["scores"] == events[1]["scores"]


def test_a_conversation_is_a_prompt_as_one_text(finished):
    talk = '[{"role": "system", "content": "the"}, {"role": "user", "content": [{"type": "text", "text": "cat"}]}]'
    (said,), (typed,) = (done("sample", finished[0], prompt, "--json").events for prompt in (talk, "the\ncat"))
    assert said == typed
    assert said["prompt"] == "the\ncat"
    (piped,) = done("sample", finished[0], "-", "--json", stdin=f"\ufeff{talk}\r\n".encode()).events
    assert piped == said
    image = '[{"role": "user", "content": [{"type": "image"}]}]'
    refused(2, "sample", finished[0], image, said=("of type 'image', not text: PROMPT",))
