"""`minirlhf reward-model` from the outside, and PPO on what it saved."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from minirlhf.stages import preferences
from tests.cli.calling import done, refused
from tests.helpers import OneSecond


def rows(path, count=60):
    """Which is better: the side that says good."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            ends = ("today", "at home", "for me", "again")
            good, bad = f" is good {ends[i % 4]} .", f" is bad {ends[(i + 1) % 4]} ."
            prompt = ("the cat", "a dog", "my tea", "this film", "her book", "the kettle")[i % 6]
            file.write(json.dumps({"question": prompt, "chosen": good, "rejected": bad}) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward-model")
    sets = ("epochs=6", "batch_size=8", "samples=16", "heldout_share=0.3")
    quick = [part for s in sets for part in ("--set", f"reward_model.{s}")]
    comparisons = rows(folder / "pairs.json")
    return folder / "rm", done("reward-model", comparisons, *tiny, *quick, "--out", folder / "rm", "--json").events


def test_it_trains_reports_and_saves(model):
    directory, events = model
    finished = events[-1]
    assert finished["event"] == "reward_model_finished"
    assert finished["report"]["accuracy"] == 1
    assert finished["report"]["pairs"] == 20
    assert finished["train_pairs"] == 40
    saved = json.loads((directory / "reward_model.json").read_text())
    assert saved["report"] == finished["report"]
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (directory / "config.toml").is_file()
    moments = json.loads((directory / "score.json").read_text())
    assert moments["mean"] != 0  # of the base's own responses
    assert moments["std"] not in (0, 1)


def test_ppo_runs_on_it_and_so_does_an_evaluation(model, tiny, tmp_path, monkeypatch):
    directory, _ = model
    monkeypatch.chdir(directory.parent)
    done("run", *tiny, "--reward", "trained", "--set", "rewards.trained.path=rm", "--out", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(metrics["reward/trained"]) < 5  # in standard deviations of the base's own
    monkeypatch.chdir(tmp_path)  # the path was made absolute
    assert "score, mean" in done("evaluate", tmp_path / "run").out


def test_what_people_read(model, tiny, tmp_path):
    quick = ["--set", "reward_model.epochs=1", "--set", "reward_model.samples=4"]
    drawn = ("--out", tmp_path / "rm", "--svg", tmp_path / "r.svg")
    shown = done("reward-model", rows(tmp_path / "p.jsonl", 12), *tiny, *quick, *drawn)
    svg = (tmp_path / "r.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "how often it is right" in svg
    assert "accuracy" in shown.out
    assert "calibration error (ECE)" in shown.out
    assert "it is right" in shown.out


def test_ties_alone_have_no_accuracy_and_that_is_said(tiny, tmp_path):
    pairs = rows(tmp_path / "p.jsonl", 12)
    ties = [json.loads(line) | {"probability": 0.5} for line in pairs.read_text().splitlines()]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ties))
    sets = ("reward_model.ensemble=2", "reward_model.epochs=1", "reward_model.samples=4")
    quick = [part for s in sets for part in ("--set", s)]
    shown = done("reward-model", pairs, *tiny, *quick, "--out", tmp_path / "a", "--svg", tmp_path / "r.svg")
    lines = [line.split("  ")[-1].strip() for line in shown.out.splitlines() if line.startswith("accuracy")]
    assert lines == ["-", "-"]  # of the model, of preferring the longer
    assert "2, 2 of them ties" in shown.out
    assert "no comparison prefers a side" in shown.err
    events = done("reward-model", pairs, *tiny, *quick, "--out", tmp_path / "b", "--json").events
    assert [e["accuracy"] for e in events if e["event"] == "reward_model"] == [None, None]
    assert events[-1]["report"]["members"] == [None, None]
    assert sum(e["event"] == "warning" for e in events) == 1


def test_an_ensemble_and_a_part_of_the_comparisons(tiny, tmp_path):
    sets = ("reward_model.ensemble=2", "reward_model.pairs=12", "reward_model.epochs=1", "reward_model.samples=4")
    quick = [part for s in sets for part in ("--set", s)]
    pairs = rows(tmp_path / "p.jsonl")
    learned = ("--set", f"corpus.demonstrations={pairs}", "--set", "sft.epochs=1")
    events = done("reward-model", pairs, *tiny, *quick, *learned, "--out", tmp_path / "rm", "--json").events
    finished = events[-1]
    (said,) = [e["message"] for e in events if e["event"] == "warning"]
    assert "chosen sides of held-out comparisons are trained on as well" in said
    assert finished["train_pairs"] + finished["report"]["pairs"] == 12
    assert finished["report"]["decided_when_to_stop"]  # too few prompts to hold out twice
    assert len(finished["report"]["members"]) == len(finished["best_step"]) == 2
    assert {e["member"] for e in events if e["event"] == "reward_model"} == {0, 1}
    weights = [(tmp_path / "rm" / str(i) / "model.safetensors").read_bytes() for i in range(2)]
    assert weights[0] != weights[1]
    use = ("--reward", "trained", "--set", f"rewards.trained.path={tmp_path / 'rm'}")
    done("run", *tiny, *use, "--set", "rewards.trained.combine=min", "--out", tmp_path / "run")
    said = ("reward_model.pairs = 999", "there are 60 comparisons")
    refused(2, "reward-model", pairs, *tiny, "--set", "reward_model.pairs=999", "--out", tmp_path / "x", said=said)


def test_refusals(tiny, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b"}\n')
    refused(2, "reward-model", bad, *tiny, said=("row has no 'rejected'", "bad.jsonl:1"))
    refused(2, "reward-model", tmp_path / "no.jsonl", *tiny, said=("no.jsonl",))
    refused(2, "reward-model", rows(tmp_path / "p.jsonl", 4), *tiny, "--out", tmp_path, said=("the directory exists",))
    refused(2, "run", *tiny, "--reward", "trained", said=("give rewards.trained.path, or corpus.preferences",))
    gone = ("--reward", "trained", "--set", "rewards.trained.path=nowhere")
    refused(2, "run", *tiny, *gone, said=("this is no saved reward model", "nowhere"))


def test_a_run_trains_the_reward_model_that_it_waits_for_and_finds_it_again(tiny, tmp_path):
    pairs = rows(tmp_path / "pairs.jsonl")
    small = (
        "reward_model.epochs=2",
        "reward_model.batch_size=8",
        "reward_model.samples=8",
        f"corpus.preferences={pairs}",
    )
    sets = [part for s in small for part in ("--set", s)]
    first = done("run", *tiny, "--reward", "trained", *sets, "--out", tmp_path / "a", "--json").events
    again = done("run", *tiny, "--reward", "trained", *sets, "--out", tmp_path / "b", "--json").events
    stages = [[e["reused"] for e in events if e.get("stage") == "reward_model"] for events in (first, again)]
    assert stages == [[False], [True]]
    assert first[-1]["seconds"]["reward_model"] > 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    third = done("run", tmp_path / "a" / "config.toml", "--out", tmp_path / "c", "--json").events
    assert [e["reused"] for e in third if e.get("stage") == "reward_model"] == [True]
    assert (tmp_path / "c" / "model" / "model.safetensors").read_bytes() == weights[0]


def test_comparisons_of_which_none_prefers_a_side_teach_no_preference(tiny, tmp_path):
    ties = [{"prompt": f"the cat {i}", "chosen": " good", "rejected": " bad", "probability": 0.5} for i in range(8)]
    (tmp_path / "ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ties))
    quick = ("--set", "reward_model.epochs=1", "--set", "reward_model.samples=2", "--out", tmp_path / "rm")
    events = done("reward-model", tmp_path / "ties.jsonl", *tiny, *quick, "--json").events
    (said,) = [e["message"] for e in events if e["event"] == "warning"]
    assert said.startswith("no comparison prefers a side")


def test_two_of_one_second_get_a_directory_each(tiny, tmp_path, monkeypatch):
    begun = []

    def build(config, directory, *_):  # stands for the training; the second begins while the first is at work
        begun.append(directory.name)
        if len(begun) == 1:
            done("reward-model", pairs, *tiny)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preferences, "datetime", OneSecond)
    monkeypatch.setattr(preferences, "build_reward_model", build)
    pairs = rows(tmp_path / "pairs.jsonl")
    done("reward-model", pairs, *tiny)
    assert begun == ["reward-model-tiny-20260102-030405", "reward-model-tiny-20260102-030405-2"]
