"""Comparisons with a stub in place of `run`: what is run and what is kept, and every number by hand."""

import json
import shutil
from dataclasses import replace
from functools import cache
from hashlib import sha256
from threading import Event

import pytest
import torch

from minirlhf.components.registry import Registry
from minirlhf.config.layers import load_config
from minirlhf.config.toml import dump_toml
from minirlhf.errors import ConfigError, DivergedError, InputError, PluginError, UsageError
from minirlhf.store.lock import locked
from minirlhf.studies import cell_runs
from minirlhf.studies.compare import WarnOnce, compare, default_directory
from minirlhf.studies.grid import Variant, grid, resolve_cells, split_values, variations
from minirlhf.studies.mixed import mixed_cells
from minirlhf.studies.summary import Outcome, measures_of, over_seeds
from tests.helpers import OneSecond

LOW, HIGH = "tiny.kl.coef=0.25", "tiny.kl.coef=0.5"


class Stub:
    """Stands for `run`: leaves what a run leaves, or raises what is given; the default gain is coefficient + seed."""

    def __init__(self, given=None, extra=None):
        self.given, self.extra, self.ran = given or {}, extra or {}, []

    def __call__(self, config, registry, directory, emit):
        at = (config.kl.coef, config.run.seed)
        self.ran.append(at)
        directory.mkdir(parents=True)  # fails where something is left
        (directory / ".lock").touch()
        (directory / "config.toml").write_text(dump_toml(config), encoding="utf-8")
        emit({"event": "step", "step": 1})
        emit({"event": "warning", "message": f"coefficient {at[0]}"})
        value = self.given.get(at, sum(at))
        if isinstance(value, BaseException):
            raise value
        found = {"policy": {"score_mean": 10 + value}, "score_gain": value, "kl_nats_per_sequence": 2 * value}
        found["objective"] = {"policy": 10 + value - 2 * value * at[0]}
        more = {"optimality": self.extra[at]} if at in self.extra else {}
        summary = {**found, **more, "seconds": {"ppo": 1.5}}
        (directory / "evaluation.json").write_text(json.dumps(summary), encoding="utf-8")
        return directory


@cache
def cells(seeds=2, values="0.25,0.5", *sets):
    return resolve_cells(grid(["tiny"], variations([f"kl.coef={values}"])), seeds, options={}, sets=sets)


def events_of(stub, directory, *more, jobs=1):
    """What is emitted, and the first failure."""
    events = []
    failure = compare(cells(*more), directory, events.append, stub, jobs=jobs)
    return events, failure


def kinds(events):
    return [event["event"] for event in events]


# ---- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0, 0.05 ,0.1", ["0", "0.05", "0.1"]),
        ("[1,2],[3,[4,5]]", ["[1,2]", "[3,[4,5]]"]),
        ('{a="},",b=1},k3', ['{a="},",b=1}', "k3"]),
        ('"x,y",z', ['"x,y"', "z"]),
        (r'"\",",z', [r'"\","', "z"]),
        (r'"\\",z', [r'"\\"', "z"]),
        (r"'\',z", [r"'\'", "z"]),  # a literal string of TOML knows no escapes
        ("it's,it", ["it's", "it"]),
        ("a],b", ["a]", "b"]),
        ("[1,2", ["[1,2"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text, values):
    assert [value.strip() for value in split_values(text)] == values
    assert variations([f"a.b={text}"]) == {"a.b": values}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["kl.coef"], "expected KEY=VALUE,VALUE,...: --vary kl.coef; such as"),
        (["kl.coef="], "expected KEY=VALUE,VALUE,..."),
        (["kl.coef=0,,1"], "expected KEY=VALUE,VALUE,..."),
        (["=0,1"], "expected KEY=VALUE,VALUE,..."),
        (["kl..coef=0,1"], "expected KEY=VALUE,VALUE,..."),
        (["kl.coef=0,1", " kl.coef =2"], "kl.coef is varied twice"),
        (["kl.coef=0.1,0.2,1e-1"], "1e-1 is given twice"),
        (['kl.estimator=k1,"k1"'], '"k1" is given twice'),
        (["run.seed=1,2"], "run.seed is not varied"),
    ],
)
def test_what_varies_nothing_is_refused(texts, said):
    with pytest.raises(UsageError) as error:
        variations(texts)
    assert said in str(error.value)


def test_true_is_not_one():
    assert variations(["a.b=true,1"]) == {"a.b": ["true", "1"]}


def test_the_grid_is_presets_times_values_with_names_to_read():
    varied = variations(["kl.coef=0,0.5", "kl.place=loss,reward"])
    both = grid(["exact", "my/own.toml"], varied)
    assert [v.label for v in both[:3]] == [
        "exact kl.coef=0 kl.place=loss",
        "exact kl.coef=0 kl.place=reward",
        "exact kl.coef=0.5 kl.place=loss",
    ]
    assert [v.directory for v in both[3:5]] == ["exact.kl.coef=0.5,kl.place=reward", "own.kl.coef=0,kl.place=loss"]
    assert both[7].plain() == {"preset": "my/own.toml", "kl.coef": 0.5, "kl.place": "reward"}
    assert [v.label for v in grid(["exact"], variations(["kl.coef=0,1"]))] == ["kl.coef=0", "kl.coef=1"]
    assert [(v.label, v.directory) for v in grid(["exact", "tiny"], {})] == [("exact", "exact"), ("tiny", "tiny")]
    with pytest.raises(UsageError, match="tiny is given twice"):
        grid(["tiny", "exact", "tiny"], {})


def test_directories_are_safe_and_each_variant_has_its_own():
    values = ["a/b", "a:b", "A:B", "../..", "\n", "x" * 300, "x" * 299 + "y"]
    names = [v.directory for v in grid(["tiny"], {"kl.estimator": values})]
    assert len({name.casefold() for name in names}) == len(values)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzAB0123456789._=-") for name in names)
    assert max(map(len, names)) < 120
    assert names[3] == "tiny.kl.estimator=..-.."
    lower, upper = (v.directory for v in grid(["tiny"], {"kl.estimator": ["k", "K"]}))
    assert lower.casefold() != upper.casefold()  # some file systems keep no case
    same = [v.directory for v in grid(["a/x.toml", "b/x.toml", ".toml", "compare.json.toml"], {})]
    assert len(set(same)) == 4
    assert all(name.startswith("x-") for name in same[:2])
    assert same[2] == "toml"
    assert same[3].startswith("compare.json-")


def test_two_comparisons_of_one_second_get_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minirlhf.studies.compare.datetime", OneSecond)
    names = [str(default_directory(["tiny", "my/own.toml"])) for _ in range(2)]
    assert names == ["runs/compare-tiny-own-20260102-030405", "runs/compare-tiny-own-20260102-030405-2"]


# ---- cells -------------------------------------------------------------------------------------------------


def test_a_cell_is_what_run_would_resolve_to():
    options, sets = {"kl.estimator": "k3", "run.device": "cpu"}, ["ppo.lr=1e-3"]
    made = resolve_cells(grid(["tiny"], variations(["kl.place=loss,both"])), 2, options=options, sets=sets)
    assert [(cell.variant.label, cell.seed) for cell in made] == [
        ("kl.place=loss", 0), ("kl.place=loss", 1), ("kl.place=both", 0), ("kl.place=both", 1),
    ]  # fmt: skip
    alone, _ = load_config("tiny", options={**options, "run.seed": 1}, sets=[*sets, "kl.place=both"])
    assert made[3].config == alone


def test_the_seed_of_a_file_counts_no_more_and_one_that_is_set_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_text("[run]\nseed = 7\n")
    (cell,) = resolve_cells(grid([str(tmp_path / "mine.toml")], {}), 1, options={}, sets=())
    assert cell.config.run.seed == 0
    with pytest.raises(ConfigError, match=r"^run\.seed cannot be set here"):
        resolve_cells(grid(["tiny"], {}), 2, options={}, sets=["run={seed=1}"])


def test_all_faults_are_found_in_one_go_each_once():
    """A fault of every variant is said without a name; others name the first variant that has them."""
    variants = grid(["tiny", "tinny"], variations(["kl.place=loss,nowhere"]))
    with pytest.raises(ConfigError) as error:
        resolve_cells(variants, 2, options={}, sets=["kl.coeff=1"])
    lines = error.value.faults
    assert len(lines) == 3
    assert lines[0].startswith("tiny kl.place=loss: kl.coeff")
    assert lines[1].startswith("tiny kl.place=nowhere: kl.place = 'nowhere' (--set)")
    assert lines[2].startswith("tinny kl.place=loss: unknown preset 'tinny'")
    with pytest.raises(ConfigError) as error:
        resolve_cells(variants[:2], 2, options={}, sets=["kl.coeff=1"])
    assert [line.partition(" ")[0] for line in error.value.faults] == ["kl.coeff", "tiny"]


# ---- running -----------------------------------------------------------------------------------------------


def test_the_cells_run_one_after_another_each_in_its_directory(tmp_path):
    stub = Stub()
    events, failure = events_of(stub, tmp_path / "out")
    assert failure is None
    assert stub.ran == [(0.25, 0), (0.25, 1), (0.5, 0), (0.5, 1)]
    assert {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*/*/evaluation.json")} == {
        f"out/{name}/s{seed}" for name in (LOW, HIGH) for seed in (0, 1)
    }
    assert events[0] == {"event": "compare_started", "out_dir": str(tmp_path / "out"), "cells": 4, "jobs": 1}
    assert kinds(events[1:6]) == ["cell_started", "warning", "cell_finished", "cell_started", "cell_finished"]
    assert events[4] == {"event": "cell_started", "cell": 2, "cells": 4, "label": "kl.coef=0.25", "seed": 1}
    assert events[5]["seconds"] < 5
    assert events[5]["measures"]["score_gain"] == 1.25
    assert kinds(events[-3:]) == ["variant", "variant", "compare_finished"]
    assert [e["message"] for e in events if e["event"] == "warning"] == ["coefficient 0.25", "coefficient 0.5"]


T1, T3 = 12.7062, 3.1824  # two-sided 95 % quantiles of Student's t for two and for four seeds


def test_means_and_intervals_over_two_seeds(tmp_path):
    """Gains c and 1 + c have a standard error of 1/2; the variants differ by 1/4 in both seeds. J = 10 + g - 2 c g."""
    events, _ = events_of(Stub(), tmp_path)
    low, high = (e for e in events if e["event"] == "variant")
    assert low["variant"] == {"preset": "tiny", "kl.coef": 0.25}
    assert (high["seeds"], high["failed"]) == ([0, 1], {})
    assert list(high["measures"]) == [
        "score_mean", "score_gain", "kl_nats_per_sequence", "objective", "seconds_ppo",
    ]  # fmt: skip
    gain, spent = high["measures"]["score_gain"], low["measures"]["kl_nats_per_sequence"]
    assert gain["ci95"] == pytest.approx([1 - T1 / 2, 1 + T1 / 2], abs=1e-4)
    assert spent["ci95"] == pytest.approx([0, 1.5 + T1], abs=1e-4)  # of a KL, which is not below 0
    assert "minus_first" not in spent
    assert (gain["mean"], gain["values"]) == (1, [0.5, 1.5])
    assert gain["minus_first"] == {
        **{"pairs": 2, "higher": 2, "lower": 0, "mean": 0.25, "std": 0},
        **{"ci95": [0.25, 0.25], "seeds_to_tell": 2},
    }
    assert high["measures"]["objective"]["values"] == [10, 10]
    assert high["measures"]["objective"]["minus_first"]["mean"] == pytest.approx(10 - (10.125 + 10.625) / 2)
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [{"event": "variant", **row} for row in written["variants"]] == [low, high]
    last = events[-1]
    assert {key: written[key] for key in ("judged", "shared", "notes")} == {
        key: last[key] for key in ("judged", "shared", "notes")
    }
    assert last["judged"]["measure"] == "score_gain"  # J is not that of the same beta
    assert last["shared"] == {"shared": ["base", "held-out prompts"], "own": []}
    assert [note.partition(" ")[0] for note in last["notes"]] == ["Variants", "Intervals:", "All"]


def test_the_interval_is_that_of_95_percent(tmp_path):
    """0, 0, 0, 4: mean 1, unbiased std 2, standard error 1."""
    stub = Stub({(0.25, 0): 0, (0.25, 1): 0, (0.25, 2): 0, (0.25, 3): 4})
    events, _ = events_of(stub, tmp_path, 4, "0.25")
    gain = events[-2]["measures"]["score_gain"]
    assert gain.pop("ci95") == pytest.approx([1 - T3, 1 + T3], abs=1e-4)
    assert gain == {"mean": 1.0, "iqm": 0.0, "values": [0, 0, 0, 4]}


@pytest.mark.parametrize(
    ("values", "middle"),
    [([1, 2, 3, 100], 2.5), ([5, 1, 2, 3, 100], 10 / 3), ([0, 1, 2, 3, 4, 5, 6, 900], 3.5), ([1, None, 2, 9, 3], 2.5)],
)
def test_the_middle_half_by_hand(values, middle):
    """A quarter of the seeds leaves at each end, rounded down: of four and five one, of eight two."""
    assert dict(over_seeds(values))["iqm"] == pytest.approx(middle)
    assert "iqm" not in dict(over_seeds([1, 2, 3]))


def test_one_seed_has_no_interval(tmp_path):
    events, _ = events_of(Stub(), tmp_path, 1, "0.25")
    assert events[-2]["measures"]["score_gain"] == {"mean": 0.25, "values": [0.25]}
    assert events[-1]["notes"] == ["One seed has no interval, and tells nothing about another: give more --seeds."]


def test_optimality_is_there_where_it_is_known_and_null_where_nothing_can_be_gained(tmp_path):
    stub = Stub(extra={(0.25, 0): 0.5, (0.25, 1): None})
    low, high = (e["measures"] for e in events_of(stub, tmp_path)[0] if e["event"] == "variant")
    assert low["optimality"] == {"mean": 0.5, "values": [0.5, None]}
    assert high["score_gain"]["minus_first"]["pairs"] == 2
    assert "optimality" not in high
    none = Stub(extra={(0.25, 0): None})
    assert events_of(none, tmp_path / "b", 1, "0.25")[0][-2]["measures"]["optimality"] == {
        "mean": None,
        "values": [None],
    }


def test_a_cell_that_fails_is_noted_and_the_others_go_on(tmp_path):
    first, second = DivergedError("the loss is not finite"), PluginError("raised")
    events, failure = events_of(Stub({(0.25, 1): first, (0.5, 0): second}), tmp_path)
    assert failure is first
    assert [(e["label"], e["seed"], e["message"]) for e in events if e["event"] == "cell_failed"] == [
        ("kl.coef=0.25", 1, "the loss is not finite"),
        ("kl.coef=0.5", 0, "raised"),
    ]
    low, high = json.loads((tmp_path / "compare.json").read_text())["variants"]
    assert (low["seeds"], low["failed"]) == ([0], {"1": "the loss is not finite"})
    assert (high["seeds"], high["failed"]) == ([1], {"0": "raised"})
    none = {"pairs": 0, "higher": 0, "lower": 0, "mean": None}  # seed 0 of one and seed 1 of the other are no pair
    assert high["measures"]["score_gain"] == {"mean": 1.5, "values": [1.5], "minus_first": none}
    again = Stub({(0.25, 1): first})
    assert events_of(again, tmp_path)[1] is first
    assert again.ran == [(0.25, 1), (0.5, 0)]


def test_a_variant_of_which_nothing_ran_has_no_measures(tmp_path):
    events, _ = events_of(Stub({(0.25, 0): PluginError("raised")}), tmp_path, 1, "0.25")
    assert (events[-2]["seeds"], events[-2]["measures"]) == ([], {})


# ---- several at once ---------------------------------------------------------------------------------------


class Backwards(Stub):
    """The first two runs end in the other order."""

    def __init__(self, *given):
        super().__init__(*given)
        self.second = Event()

    def __call__(self, config, registry, directory, emit):
        if (config.kl.coef, config.run.seed) == (0.25, 0):
            assert self.second.wait(60)
        try:
            return super().__call__(config, registry, directory, emit)
        finally:
            if (config.kl.coef, config.run.seed) == (0.25, 1):
                self.second.set()


def without_seconds(events):
    return [
        {key: value for key, value in e.items() if key not in ("seconds", "jobs", "out_dir", "page")} for e in events
    ]


def test_two_at_once_say_and_find_what_one_after_another_does(tmp_path):
    fault = {(0.25, 1): DivergedError("first"), (0.5, 0): PluginError("second")}
    one, failed = events_of(Stub(fault), tmp_path / "one")
    stub = Backwards(fault)
    two, failure = events_of(stub, tmp_path / "two", jobs=2)
    assert (one[0]["jobs"], two[0]["jobs"]) == (1, 2)
    assert stub.ran[1] != (0.25, 1) == stub.ran[0]
    assert without_seconds(two) == without_seconds(one)
    assert failure is failed is fault[0.25, 1]
    assert (tmp_path / "one" / "compare.json").read_bytes() == (tmp_path / "two" / "compare.json").read_bytes()


def test_so_many_at_once_as_the_cores_have_room_for(tmp_path, monkeypatch):
    """`tiny` has two threads a run."""
    for cores, jobs in ((1, 1), (5, 2), (64, 4)):
        monkeypatch.setattr(cell_runs, "cores", lambda cores=cores: cores)
        assert events_of(Stub(), tmp_path / str(cores), jobs=None)[0][0]["jobs"] == jobs
    shutil.rmtree(tmp_path / "64" / LOW / "s0")
    assert events_of(Stub(), tmp_path / "64", jobs=None)[0][0]["jobs"] == 1
    assert events_of(Stub(), tmp_path / "64", jobs=3)[0][0]["jobs"] == 1
    threads = resolve_cells(grid(["tiny"], {"run.threads": ["1", "4"]}), 2, options={}, sets=())
    monkeypatch.setattr(cell_runs, "cores", lambda: 9)
    assert cell_runs.jobs_that_fit(threads) == 2


def test_a_gpu_is_not_shared_unless_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(cell_runs, "cores", lambda: 64)
    monkeypatch.setattr(cell_runs, "resolve_device", lambda name: torch.device("cuda"))
    assert cell_runs.jobs_that_fit(cells()) == 1


def test_what_stops_one_of_several_stops_the_comparison(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=f"the same command with --out {tmp_path} goes on"):
        events_of(Stub({(0.25, 0): KeyboardInterrupt()}), tmp_path, jobs=2)
    with pytest.raises(ZeroDivisionError):
        events_of(Stub({(0.25, 0): ZeroDivisionError()}), tmp_path, jobs=2)
    assert events_of(Stub(), tmp_path, jobs=2)[1] is None


# ---- going on ----------------------------------------------------------------------------------------------


def test_what_is_done_is_kept_and_counts(tmp_path):
    events_of(Stub(), tmp_path, 1)
    stub = Stub({(0.25, 1): 9.75})
    events, _ = events_of(stub, tmp_path)
    assert stub.ran == [(0.25, 1), (0.5, 1)]
    assert [e["kept"] for e in events if e["event"] == "cell_finished"] == [True, False, True, False]
    assert kinds(events).count("cell_started") == 2
    low = next(e for e in events if e["event"] == "variant")
    assert low["measures"]["score_gain"]["values"] == [0.25, 9.75]


def test_a_cell_that_was_stopped_is_removed_and_run_again(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=f"the same command with --out {tmp_path} goes on"):
        events_of(Stub({(0.25, 1): KeyboardInterrupt("go on with: something else")}), tmp_path)
    left = tmp_path / LOW / "s1"
    assert not (left / "evaluation.json").exists()
    (left / "metrics.jsonl").write_text("{}\n")
    (tmp_path / HIGH / "s0").mkdir(parents=True)  # stopped before it held anything
    stub = Stub()
    assert events_of(stub, tmp_path)[1] is None
    assert stub.ran == [(0.25, 1), (0.5, 0), (0.5, 1)]
    assert not (left / "metrics.jsonl").exists()


def test_a_run_of_another_configuration_is_refused_before_the_first_run(tmp_path):
    events_of(Stub(), tmp_path, 1, "0.5")
    stub = Stub()
    with pytest.raises(UsageError, match="another configuration") as error:
        events_of(stub, tmp_path, 1, "0.25,0.5", "ppo.lr=1e-3")
    assert f"{HIGH}/s0" in str(error.value)
    (tmp_path / HIGH / "s0" / "config.toml").unlink()
    with pytest.raises(UsageError, match="another configuration"):
        events_of(stub, tmp_path, 1)
    assert stub.ran == []


def test_what_is_no_run_is_refused_and_stays(tmp_path):
    thesis = tmp_path / HIGH / "s1" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    stub = Stub()
    with pytest.raises(UsageError, match="not a run that was stopped"):
        events_of(stub, tmp_path)
    assert stub.ran == []
    assert thesis.read_text() == "mine"


def test_a_link_or_a_file_in_the_place_of_a_cell_is_refused_and_stays(tmp_path):
    mine, place = tmp_path / "mine", tmp_path / LOW / "s0"
    mine.mkdir()
    (mine / ".lock").touch()
    place.parent.mkdir()
    place.symlink_to(mine)
    with pytest.raises(UsageError, match="not a run that was stopped"):
        events_of(Stub(), tmp_path)
    assert list(mine.iterdir()) == [mine / ".lock"]
    place.unlink()
    place.write_text("mine")
    with pytest.raises(UsageError, match="not a run that was stopped"):
        events_of(Stub(), tmp_path)
    assert place.read_text() == "mine"


def test_an_evaluation_that_is_none_is_refused_before_the_first_run(tmp_path):
    events_of(Stub(), tmp_path, 1, "0.5")
    (tmp_path / HIGH / "s0" / "evaluation.json").write_text('{"score_gain": 1.0}')
    stub = Stub()
    with pytest.raises(InputError, match="not the evaluation of a run"):
        events_of(stub, tmp_path, 1)
    assert stub.ran == []


EVALUATION = (
    '{"policy": {"score_mean": 1.0, "true_score_mean": 1.0}, "score_gain": 1.0, "kl_nats_per_sequence": 1.0, '
    '"true_score_gain": 1.0, "optimality": 1.0, "objective": {"policy": 1.0}, "seconds": {"ppo": 1.0}}'
)


@pytest.mark.parametrize("value", ["NaN", "1e400", "1" + "0" * 400, '"inf"', '"1.0"', "true", "[]"])
@pytest.mark.parametrize(
    "key", ["score_mean", "true_score_mean", "score_gain", "kl_nats_per_sequence", "optimality", "ppo"]
)
def test_an_evaluation_that_somebody_changed_is_one_line(tmp_path, key, value):
    file = tmp_path / "evaluation.json"
    file.write_text(EVALUATION)
    assert set(measures_of(tmp_path).values()) == {1.0}
    file.write_text(EVALUATION.replace(f'"{key}": 1.0', f'"{key}": {value}'))
    with pytest.raises(InputError, match=r"evaluation\.json"):
        measures_of(tmp_path)


def test_two_comparisons_do_not_work_in_one_directory(tmp_path):
    def second(*_):
        compare(cells(), tmp_path, lambda event: None, Stub(), jobs=1)

    failure = compare(cells(), tmp_path, lambda event: None, second, jobs=1)
    assert "another process works here" in str(failure)
    assert str(tmp_path) in str(failure)


def test_a_run_that_is_at_work_in_a_cell_is_left_alone(tmp_path):
    place = tmp_path / LOW / "s0"
    with locked(place / ".lock", print):
        events, failure = events_of(Stub(), tmp_path, 1)
    assert "another process works here" in str(failure)
    assert [e["seed"] for e in events if e["event"] == "cell_failed"] == [0]
    assert place.is_dir()


def test_a_plugin_that_is_left_out_is_said_once(tmp_path):
    events, registry = [], Registry(warnings=["plugin 'broken' is left out"])
    compare([replace(cell, registry=registry) for cell in cells()], tmp_path, events.append, Stub(), jobs=1)
    said = [e["message"] for e in events if e["event"] == "warning"]
    assert said == ["plugin 'broken' is left out", "coefficient 0.25", "coefficient 0.5"]


def test_of_a_runs_events_only_new_warnings_are_passed_on():
    events = []
    once = WarnOnce(events.append)
    for event in ({"event": "step"}, {"event": "warning", "message": "a"}, {"event": "warning", "message": "a"}):
        once(event)
    assert events == [{"event": "warning", "message": "a"}]


# ---- what changed between the runs -------------------------------------------------------------------------


def made_of(directory, seed, coef, **facts):
    """Write into a finished run's evaluation what it was made of."""
    file = directory / f"tiny.kl.coef={coef}" / f"s{seed}" / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"made_of": facts}))


def test_runs_that_were_made_of_different_things_are_told_apart_in_one_warning(tmp_path):
    """Two files changed after seed 0; one file that only a variant uses, and an equal version, are no change."""
    events_of(Stub(), tmp_path)
    for coef in ("0.25", "0.5"):
        for seed in (0, 1):
            own = {"/only/this.py": "5"} if coef == "0.5" else {}
            code = {"/a/f.py": f"{seed}" * 64, **own}
            made_of(tmp_path, seed, coef, torch="2", code=code, sources={"/a/p.jsonl": "7" if seed else "8"})
    events, failure = events_of(Stub(), tmp_path)
    assert failure is None
    (said,) = [e["message"] for e in events if e["event"] == "warning"]
    first, second = (f"kl.coef=0.25 seed {seed}, kl.coef=0.5 seed {seed}" for seed in (0, 1))
    assert f"/a/f.py: {'0' * 12} in {first}; {'1' * 12} in {second} | /a/p.jsonl: 8 in {first}; 7 in {second}" in said
    assert "this.py" not in said
    assert "torch" not in said
    kept = json.loads((tmp_path / "compare.json").read_text())["mixed"]
    assert list(kept) == ["/a/f.py", "/a/p.jsonl"]


def test_a_file_that_changed_after_the_last_run_is_told_although_all_runs_agree(tmp_path):
    """Every cell is kept, and the table is not of what the file says now."""
    reward = tmp_path / "f.py"
    reward.write_text("old")
    old, now = sha256(b"old").hexdigest(), sha256(b"new").hexdigest()
    variant = Variant("tiny", (), "tiny", "tiny")
    run = variant.run_directory(tmp_path, 0)
    run.mkdir(parents=True)
    (run / "evaluation.json").write_text(json.dumps({"made_of": {"code": {str(reward): old}, "sources": {}}}))
    outcomes = {variant: Outcome({0: {}})}
    assert mixed_cells(outcomes, tmp_path) == {}
    reward.write_text("new")
    expected = {str(reward): {old[:12]: [f"{variant.label} seed 0"], now[:12]: ["the file as it is now"]}}
    assert mixed_cells(outcomes, tmp_path) == expected
