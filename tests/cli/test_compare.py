"""`minirlhf compare` from the outside: real runs that are those of `run`, the table, exit codes, what it refuses."""

import json
import os
import tomllib
from functools import partial
from html import unescape

import pytest

from minirlhf.errors import DivergedError
from minirlhf.studies import compare as module
from minirlhf.studies.compare import compare
from tests.cli.calling import call, done, refused
from tests.plugins.files import write
from tests.report.test_page import Read
from tests.studies.test_compare import Stub

REWARD = """
@hookimpl
def register_reward_models():
    return {"vowels": lambda completions: [sum(c in "aeiou" for c in text) / 9 for text in completions]}
"""
VARY = ("compare", "tiny", "--vary", "kl.coef=0.25,0.5", "--seeds", "2", "--jobs", "1")


@pytest.fixture
def stubbed(monkeypatch):
    """Use a stub in place of `run`."""
    return lambda *given: monkeypatch.setattr(module, "compare", partial(compare, runner=Stub(*given)))


def test_two_values_over_two_seeds_are_four_runs_and_the_second_time_none(tiny, tmp_path):
    arguments = ("compare", *tiny, "--vary", "kl.place=loss,reward", "--kl", "k2", "--seeds", 2, "--out", tmp_path)
    arguments += ("--jobs", 1)
    result = done(*arguments, "--json")
    warned = [e for e in result.events if e["event"] == "warning"]
    assert sum("kl k2 in reward" in e["message"] for e in warned) == 1
    first, second, last = result.events[len(warned) :]
    page = tmp_path / "compare.html"
    assert (last["event"], last["out_dir"], last["page"]) == ("compare_finished", str(tmp_path), str(page))
    assert last["judged"]["measure"] == "objective"
    assert all(note in unescape(page.read_text()) for note in last["notes"])
    curves = json.loads("".join(Read(page.read_text()).code["data"]))
    assert [v["label"] for v in curves["variants"]] == ["kl.place=loss", "kl.place=reward"]
    assert [s["seed"] for s in curves["variants"][1]["seeds"]] == [0, 1]
    rows = [json.loads(line) for line in (tmp_path / "tiny.kl.place=reward/s1/metrics.jsonl").read_text().splitlines()]
    assert curves["variants"][1]["seeds"][1]["metrics"]["objective/kl"] == pytest.approx(
        [r["objective/kl"] for r in rows], rel=1e-5
    )
    assert first["variant"] == {"preset": "tiny", "kl.place": "loss"}
    assert second["seeds"] == [0, 1]
    assert set(first["measures"]) == {
        "score_mean", "score_gain", "kl_nats_per_sequence", "objective", "seconds_ppo",
    }  # fmt: skip
    assert "2/4 kl.place=loss seed 1\n" in result.err
    assert sum(line.startswith("warning: kl k2 in reward") for line in result.err.splitlines()) == 1

    run = tmp_path / "alone"
    done("run", *tiny, "--kl", "k2", "--set", "kl.place=reward", "--seed", 1, "--out", run)
    cell = tmp_path / "tiny.kl.place=reward" / "s1"
    assert (cell / "config.toml").read_bytes() == (run / "config.toml").read_bytes()
    assert (cell / "model" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()
    alone, evaluation = (json.loads((place / "evaluation.json").read_text()) for place in (run, cell))
    assert alone.pop("seconds") != evaluation.pop("seconds")
    assert alone == evaluation
    assert second["measures"]["score_gain"]["values"][1] == alone["score_gain"]

    before = (cell / "evaluation.json").stat().st_mtime_ns
    again = done(*arguments, "--json")
    assert again.events == result.events[len(warned) :]
    assert [line.partition(",")[0] for line in again.err.splitlines()[1:]] == [
        f"{number}/4 kl.place={place} seed {seed}: kept"
        for number, (place, seed) in enumerate([("loss", 0), ("loss", 1), ("reward", 0), ("reward", 1)], start=1)
    ]
    assert (cell / "evaluation.json").stat().st_mtime_ns == before


def test_two_in_processes_of_their_own_are_the_same_runs_and_one_that_fails_leaves_the_other(
    tiny, tmp_path, monkeypatch
):
    """The plugin is a module that only this process would find by itself."""
    (tmp_path / "found").mkdir()
    write(tmp_path / "found", "reward_of_mine", REWARD)
    monkeypatch.syspath_prepend(tmp_path / "found")
    sets = (
        "--plugin",
        "reward_of_mine",
        "--reward",
        "vowels",
        "--kl",
        "k2",
        "--set",
        "ppo.epochs=2",
        "--set",
        f"run.bases={tmp_path / 'bases'}",
        "--seeds",
        1,
    )
    arguments = ("compare", *tiny, "--vary", "ppo.lr=1e-3,1e18", *sets)
    several = call(*arguments, "--jobs", 2, "--out", tmp_path / "two")  # which have to make the base first
    alone = call(*arguments, "--jobs", 1, "--out", tmp_path / "one")
    assert several.code == alone.code == 3
    assert several.errors == alone.errors != []
    assert f"2 runs in {tmp_path / 'two'}, 2 at once\n" in several.err
    warned = [[line for line in result.err.splitlines() if line.startswith("warning: ")] for result in (several, alone)]
    assert warned[0] == warned[1] != []
    found = []
    for name in ("two", "one"):
        place = tmp_path / name / "tiny.ppo.lr=1e-3" / "s0"
        variants = json.loads((tmp_path / name / "compare.json").read_text())["variants"]
        variants[0]["measures"].pop("seconds_ppo")
        found.append([variants, *((place / file).read_bytes() for file in ("config.toml", "model/model.safetensors"))])
        assert [path.name for path in place.parent.iterdir()] == ["s0"]
        assert (name == "one") == (f"pid {os.getpid()} " in (place / ".lock").read_text())
    assert found[0] == found[1]


def test_the_table_has_a_line_a_variant(stubbed, tmp_path):
    stubbed()
    result = done(*VARY, "--out", tmp_path)
    assert result.out.splitlines() == [
        "variant       seeds               score gain                  KL                           J          ppo, s",
        "kl.coef=0.25      2  +0.750 [-5.603, +7.103]  1.50 [0.00, 14.21]   +10.375 [+7.198, +13.552]  1.5 [1.5, 1.5]",
        "kl.coef=0.5       2  +1.000 [-5.353, +7.353]  2.00 [0.00, 14.71]  +10.000 [+10.000, +10.000]  1.5 [1.5, 1.5]",
        "",
        "minus kl.coef=0.25  difference in score gain     higher in  verdict",
        "kl.coef=0.5          +0.250 [+0.250, +0.250]  2 of 2 seeds  beats the first in score gain",
        "",
        "Variants are compared in the score gain, which does not count the KL, by the differences of the same seed: "
        "J = score - beta KL is not the same for all of them, because kl.coef differs.",
        "Intervals: 95 %, Student's t over the seeds, each by itself; of KL and seconds down to 0, of F up to 1.",
        "All seeds share base and held-out prompts, so that the intervals do not cover another choice of these "
        "(--vary-base of compare makes another base for each seed).",
        "",
        str(tmp_path / "compare.html"),
        str(tmp_path),
    ]
    assert result.err.splitlines()[:4] == [
        f"4 runs in {tmp_path}",
        "1/4 kl.coef=0.25 seed 0",
        "warning: coefficient 0.25",
        "  0.0 s, score gain +0.250, KL 0.50 nats",
    ]


def test_each_seed_has_a_base_of_its_own_where_that_is_asked_for(stubbed, tmp_path):
    stubbed()
    result = done(*VARY, "--vary-base", "--out", tmp_path)
    for seed in (0, 1):
        config = tomllib.loads((tmp_path / "tiny.kl.coef=0.25" / f"s{seed}" / "config.toml").read_text())
        assert [config[section]["seed"] for section in ("run", "pretrain", "sft", "reward_model")] == [seed] * 4
    assert "Each seed has its own base; all seeds share held-out prompts" in result.out


def test_a_failure_has_a_column_and_its_exit_code_comes_after_the_table(stubbed, tmp_path):
    stubbed({(0.25, 0): DivergedError("the loss\x1b is not finite")}, {(0.5, 0): 0.875, (0.5, 1): None})
    arguments = ("compare", "tiny", "--vary", "kl.coef=0.25,0.5", "--seeds", 1, "--out", tmp_path)
    result = call(*arguments)
    assert result.code == 3
    assert result.out.splitlines()[:3] == [
        "variant       seeds  failed  score gain    KL        J       F  ppo, s",
        "kl.coef=0.25      0       1           -     -        -       -       -",
        "kl.coef=0.5       1       0      +0.500  1.00  +10.000  0.8750     1.5",
    ]
    assert "  failed: the loss\\x1b is not finite\n" in result.err
    assert ", F 0.8750\n" in result.err
    assert result.errors == ["error: the loss\\x1b is not finite"] == result.err.splitlines()[-1:]
    low, _, last = [e for e in call(*arguments, "--json").events if e["event"] != "warning"]
    assert low["failed"] == {"0": "the loss\x1b is not finite"}
    assert last["event"] == "compare_finished"


def test_where_nothing_can_be_gained_there_is_no_share_to_show(stubbed, tmp_path):
    stubbed({}, {(0.25, 0): None})
    result = done("compare", "tiny", "--set", "kl.coef=0.25", "--seeds", 1, "--out", tmp_path)
    assert result.out.splitlines()[1] == "tiny         1      +0.250  0.50  +10.125  -     1.5"
    assert result.err.endswith("score gain +0.250, KL 0.50 nats\n")


def test_presets_side_by_side_in_a_directory_of_their_own_under_runs(stubbed, tmp_path, monkeypatch):
    stubbed()
    monkeypatch.chdir(tmp_path)
    result = done("compare", "tiny", "exact", "--seeds", 1, "--set", "kl.coef=0.5", "--device", "cpu")
    assert [line.split()[0] for line in result.out.splitlines()[:3]] == ["variant", "tiny", "exact"]
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("compare-tiny-exact-")
    assert result.out.splitlines()[-1] == str(made)
    assert 'device = "cpu"' in (made / "exact" / "s0" / "config.toml").read_text()


def test_an_interrupt_stops_it_and_the_same_command_goes_on(stubbed, tmp_path):
    stubbed({(0.25, 1): KeyboardInterrupt()})
    assert call(*VARY, "--out", tmp_path).code == 130
    assert not (tmp_path / "compare.json").exists()
    stubbed()
    assert done(*VARY, "--out", tmp_path).err.count(": kept, ") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "PRESET"),
        (["tiny", "tiny"], "tiny is given twice"),
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "--seeds", "0"], "--seeds"),
        (["tiny", "--jobs", "0"], "--jobs"),
        (["tiny", "--seed", "1"], "--seed"),
        (["tiny", "--vary", "kl.coef"], "expected KEY=VALUE"),
        (["tiny", "--vary", "kl.place=loss,nowhere"], "kl.place=nowhere: kl.place = 'nowhere' (--set)"),
        (["tiny", "--set", "run.seed=1"], "run.seed cannot be set here"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_nothing_is_made(arguments, said, tmp_path):
    refused(2, "compare", *arguments, "--out", tmp_path / "out", said=(said,))
    assert not (tmp_path / "out").exists()


def test_another_configuration_in_the_same_directory_is_refused(stubbed, tmp_path):
    stubbed()
    done(*VARY, "--out", tmp_path)
    refused(2, *VARY, "--set", "ppo.lr=1e-3", "--out", tmp_path, said=("another configuration", "s0"))
