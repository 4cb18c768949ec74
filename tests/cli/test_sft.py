"""`minirlhf sft` and runs that start from what it made, through every stage of the preset `preferences`."""

import json
import tomllib

import pytest

from tests.cli.calling import done, refused
from tests.cli.test_reward_model import rows


def demonstrations(path, count=40):
    """Conversations: whatever is asked, the answer is that it is good."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            asked = ("the cat", "a dog", "my tea", "this film", "her book", "the kettle")[i % 6]
            messages = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": f"is good {i % 3} times ."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture
def quick(tiny):
    sets = ("sft.epochs=4", "sft.lr=1e-2", "reward_model.epochs=1", "reward_model.samples=4")
    return [*tiny, *(part for s in sets for part in ("--set", s))]


def test_it_is_made_once_and_found_again(quick, tmp_path):
    shown = demonstrations(tmp_path / "shown.jsonl")
    quick = [*quick, "--set", "sft.epochs=10"]
    events = done("sft", shown, *quick, "--json").events
    (made,) = [e for e in events if e["event"] == "sft_finished"]
    steps = [e for e in events if e["event"] == "sft"]
    assert len(steps) == made["steps"] == steps[-1]["step"]
    assert made["heldout_loss"] < made["heldout_loss_before"] / 2
    assert made["demonstrations"] + made["heldout"] == 40
    again = done("sft", shown, *quick)
    assert "sft         reused" in again.err
    assert again.out.strip() == made["directory"]
    other = done("sft", shown, *quick, "--set", "sft.seed=1").out.strip()
    assert other != made["directory"]


def test_a_run_goes_through_every_stage_and_its_config_runs_again(quick, tmp_path):
    """Pretraining, SFT, reward model, PPO; the reference is what SFT made; each stage has its time."""
    shown, pairs = demonstrations(tmp_path / "shown.jsonl"), rows(tmp_path / "pairs.jsonl")
    files = ("--set", f"corpus.demonstrations={shown}", "--set", f"corpus.preferences={pairs}", "--reward", "trained")
    events = done("run", *quick, *files, "--out", tmp_path / "run", "--json").events
    assert events[0]["event"] == "run_started"
    stages = [e["stage"] for e in events if e["event"] == "stage"]
    assert stages == ["base", "sft", "reward_model", "ppo", "evaluation"]
    assert list(events[-1]["seconds"]) == ["base", "sft", "reward_model", "ppo", "evaluation", "total"]
    made = next(e for e in events if "heldout_loss_before" in e)
    kept = tmp_path / "run" / "reference" / "model.safetensors"
    assert kept.read_bytes() == (tmp_path / made["directory"] / "model.safetensors").read_bytes()
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert "path" not in config["rewards"]["trained"]  # so that a change of settings trains another one
    again = done("run", tmp_path / "run" / "config.toml", "--out", tmp_path / "again", "--json").events
    assert [e["reused"] for e in again if e.get("stage") in ("base", "sft")] == [True, True]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert weights[0] == weights[1]
    done("evaluate", tmp_path / "run")


def test_texts_that_meet_or_end_in_the_wrong_way_are_counted_once_in_each_file(quick, finished, tmp_path):
    def put(name, *each):
        path, lines = tmp_path / f"{name}.jsonl", [json.dumps(row(i)) + "\n" for row in each for i in range(20)]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    glued = put("shown", lambda i: {"prompt": f"the cat {i}?", "completion": "it is good today"})
    pairs = put(
        "pairs",
        lambda i: {"prompt": f"a dog {i}?", "chosen": "good", "rejected": " bad"},
        lambda i: {"prompt": f"a dog {i}?", "chosen": " good", "rejected": " bad"},
    )
    ends = put("ends", lambda i: {"prompt": f"my tea {i} "})
    files = {"text": glued, "demonstrations": glued, "preferences": pairs, "prompts": ends}
    sets = (*(f"corpus.{key}={path}" for key, path in files.items()), f"run.bases={tmp_path}", "pretrain.steps=2")
    options = ("--reward", "trained", *(part for s in sets for part in ("--set", s)), "--out", tmp_path / "run")
    events = done("run", *quick, *options, "--json").events
    said = [e["message"] for e in events if e["event"] == "warning" and " space" in e["message"]]
    assert [text.partition(", such")[0] for text in said] == [
        "in 16 of 16 documents that are made of both prompt and completion meet without a space",  # 4 are held out
        "in 20 of 20 demonstrations prompt and completion meet without a space",
        "in 20 of 40 comparisons prompt and completion meet without a space",
        "20 of 20 prompts end in a space",
    ]
    for command in (("evaluate", finished[0], "--prompts", ends), ("sample", finished[0], "my tea ")):
        assert "in a space, such as 'my tea" in done(*command).err


def test_a_normalised_reward_is_measured_on_the_reference_before_the_run_and_in_an_evaluation(tiny, tmp_path):
    sets = ("rewards.length.normalize=true", "rewards.length.clip=1.5", "evaluation.samples=0")
    options = ("--reward", "length=2", *(part for s in sets for part in ("--set", s)))
    events = done("run", *tiny, *options, "--out", tmp_path / "run", "--json").events
    (scale,) = [e for e in events if e["event"] == "reward_scale"]
    assert scale["label"] == "length"
    assert 0 < scale["mean"] < 1
    assert scale["std"] not in (0, 1)
    first = next(e for e in events if e["event"] == "step")
    assert 0 <= first["reward/length"] <= 1  # as it is
    assert abs(first["objective/scores"]) < 3  # twice what is cut at 1.5
    assert abs(first["objective/scores"] - 2 * (first["reward/length"] - scale["mean"]) / scale["std"]) < 0.5
    again = json.loads(done("evaluate", tmp_path / "run", "--json").out)
    assert again["policy"]["score_mean"] == events[-1]["policy"]["score_mean"]


def test_faults_are_found_before_anything_is_trained(tiny, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    fresh = ("--set", f"run.bases={tmp_path / 'bases'}")
    refused(2, "sft", bad, *tiny, *fresh, said=("row has no 'completion'", "bad.jsonl:2"))
    refused(2, "run", *tiny, *fresh, "--set", f"corpus.demonstrations={bad}", said=("bad.jsonl:2",))
    refused(2, "sft", tmp_path / "no.jsonl", *tiny, *fresh, said=("no.jsonl",))
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "a", "completion": "b"}\n')
    refused(2, "sft", one, *tiny, *fresh, said=("one row cannot be learned from and held out",))
    assert not (tmp_path / "bases").exists()


def test_a_directory_that_is_taken_is_refused_before_anything_is_trained(tiny, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    pairs, bases = rows(tmp_path / "pairs.jsonl"), tmp_path / "bases"
    sets = ("--set", f"corpus.preferences={pairs}", "--set", f"run.bases={bases}", "--reward", "trained")
    refused(2, "run", *tiny, *sets, "--out", tmp_path / "taken", said=("exists and is not empty",))
    assert not bases.exists()
