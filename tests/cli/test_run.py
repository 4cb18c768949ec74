"""`minirlhf run` as a user sees it: its files, its options, users' own rewards and texts; a seed decides everything."""

import json
import os
import pty
import sys
import tomllib

import pytest

from minirlhf.cli.lines import tell
from minirlhf.pipeline import pipeline as composition
from minirlhf.rl import guards
from minirlhf.rl.guards import OWN_METRICS
from minirlhf.studies.summary import measures_of
from tests.cli.calling import call, done, refused

SIX_LINES = """from minirlhf import hookimpl

@hookimpl
def register_reward_models():
    return {"vowels": lambda completions: [sum(c in "aeiou" for c in text) / 9 for text in completions]}
"""
TRL = """
import asyncio

def shorter(prompts, completions, **kwargs):
    assert len(kwargs["completion_ids"]) == len(prompts)
    return [-float(len(text)) for text in completions]

async def patient(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]
"""


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(metrics):
    return {k: v for k, v in metrics.items() if not k.startswith("time/") and k not in ("eps", "tokens_per_s")}


# ---- what a run leaves -------------------------------------------------------------------------------------


def test_the_run_directory_holds_what_the_readme_says(finished):
    run, _ = finished
    assert {path.name for path in run.iterdir()} == {
        ".lock", "config.toml", "metrics.jsonl", "samples.jsonl", "tokens.jsonl", "evaluation.json",
        "report.html", "model", "reference", "checkpoints",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {f"step_{n:08d}" for n in (1, 2, 3, 4)}
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    model = {path.name for path in (run / "model").iterdir()}
    assert model >= {"config.json", "model.safetensors", "value_head.safetensors", "tokenizer.json"}
    samples = rows(run / "samples.jsonl")
    assert {row["step"] for row in samples if "step" in row} == {1, 2, 3, 4}
    assert sum(row.get("stage") == "evaluation" for row in samples) == 4


def test_every_line_of_json_output_is_an_event_and_the_last_carries_the_evaluation(finished):
    run, events = finished
    kinds = [event["event"] for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_finished"
    assert set(kinds) - {"pretrain"} == {
        *("run_started", "warning", "stage", "step", "sample", "checkpoint", "run_finished")
    }
    last = dict(events[-1])
    assert last.pop("run_dir") == str(run)
    assert last.pop("report") == str(run / "report.html")
    del last["event"], last["samples"]
    assert last == json.loads((run / "evaluation.json").read_text())


def test_the_saved_config_runs_again_to_the_same_numbers(finished, tmp_path):
    run, _ = finished
    done("run", run / "config.toml", "--out", tmp_path / "again")
    for name in ("metrics.jsonl", "samples.jsonl"):
        before, after = rows(run / name), rows(tmp_path / "again" / name)
        assert [without_times(r) for r in before] == [without_times(r) for r in after]
    assert tomllib.loads((run / "config.toml").read_text()) == tomllib.loads(
        (tmp_path / "again" / "config.toml").read_text()
    )


def test_what_is_logged_of_tokens_moves_nothing(tiny, tmp_path):
    for name, count in (("none", 0), ("some", 64)):
        done("run", *tiny, "--set", f"run.token_log={count}", "--out", tmp_path / name)
    none, some = tmp_path / "none", tmp_path / "some"
    for file in ("model.safetensors", "value_head.safetensors"):
        assert (none / "model" / file).read_bytes() == (some / "model" / file).read_bytes()
    assert rows(none / "tokens.jsonl") == []
    assert [row["step"] for row in rows(some / "tokens.jsonl")] == [1] * 8 + [2] * 8
    assert "No token log" in (none / "report.html").read_text()


def test_one_seed_gives_identical_weights_and_another_different_ones(tiny, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        done("run", *tiny, "--seed", seed, "--out", tmp_path / name)
    weights = {name: (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc"}
    metrics = {name: [without_times(r) for r in rows(tmp_path / name / "metrics.jsonl")] for name in "abc"}
    assert weights["a"] == weights["b"]
    assert metrics["a"] == metrics["b"]
    assert weights["a"] != weights["c"]
    assert metrics["a"] != metrics["c"]


def test_the_reference_is_the_base_and_the_model_is_not(finished):
    run, _ = finished
    bases = tomllib.loads((run / "config.toml").read_text())["run"]["bases"]
    base = {path.read_bytes() for path in __import__("pathlib").Path(bases).glob("*/model.safetensors")}
    assert (run / "reference" / "model.safetensors").read_bytes() in base
    assert (run / "model" / "model.safetensors").read_bytes() not in base


def test_evaluate_reproduces_the_evaluation_of_the_run(finished):
    run, _ = finished
    again = json.loads(done("evaluate", run, "--json").out)
    saved = json.loads((run / "evaluation.json").read_text())
    del saved["seconds"], saved["made_of"]
    assert again.pop("warnings") == ["no prompts given: 31 openings of held-out documents serve"]
    assert again == saved


def test_the_names_that_a_loss_cannot_log_under_are_all_that_the_loop_has(finished):
    """What is logged as policy/NAME_avg comes from the loop or from ppo_clip, which logs two."""
    names = {name for name in rows(finished[0] / "metrics.jsonl")[0] if name.startswith("policy/")}
    own = {f"policy/{name}_avg" for name in (*OWN_METRICS, "clipfrac", "outside")}
    assert {name for name in names if name.endswith("_avg")} == own


def test_prompts_to_evaluate_on_that_the_run_was_trained_on_are_counted(finished, tmp_path):
    run, _ = finished
    (known, *_) = [json.loads(line)["prompt"] for line in (run / "samples.jsonl").read_text().splitlines()]
    own = tmp_path / "p.jsonl"
    own.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (known, "a new one")))
    quick = [p for s in ("residual_prompts=0", "best_of=0", "bootstrap=100") for p in ("--set", f"evaluation.{s}")]
    shown = done("evaluate", run, "--prompts", own, *quick)
    assert "warning: 1 of 2 prompts of the file are trained on as well" in shown.err
    own.write_text(json.dumps({"prompt": "a new one"}))
    assert "warning" not in done("evaluate", run, "--prompts", own, *quick).err


def test_a_run_without_out_makes_a_directory_of_its_own_under_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = done("run", *tiny, "--seed", 3)
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("tiny-")
    assert made.name.endswith("-s3")
    assert result.out.splitlines()[-1] == str(made)


def test_a_directory_that_holds_something_is_not_touched(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(2, "run", *tiny, "--out", tmp_path, said=("exists and is not empty", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ---- what can be chosen ------------------------------------------------------------------------------------

CHOICES = {
    "length": ("--reward", "length"),
    "two rewards": ("--reward", "sentiment", "--reward", "repetition=0.5"),
    "exact KL in both places": ("--kl", "exact", "--set", "kl.place=both"),
    "KL in the loss": ("--kl", "k3", "--set", "kl.place=loss"),
    "ratio loss": ("--loss", "ratio"),
    "Monte Carlo": ("--advantage", "mc"),
    "no critic": ("--advantage", "reward_to_go"),
    "separate critic": ("--set", "model.separate_critic=true"),
    "groups": ("--set", "ppo.responses_per_prompt=4", "--set", "ppo.prompts_per_iteration=2"),
    "adaptive KL": ("--set", "kl.controller=adaptive", "--set", "kl.target=2.0"),
    "micro-batches": ("--set", "ppo.micro_batch_size=3"),
    "truncation": ("--set", "truncation.rule=bootstrap"),
    "score rules": ("--set", "ppo.score_normalize=true", "--set", "loss.aggregation=sequence_mean"),
    "value clip": ("--set", "loss.value_clip=0.2", "--set", "loss.entropy_coef=0.01"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_with(choice, tiny, tmp_path):
    done("run", *tiny, "--set", "ppo.iterations=1", *CHOICES[choice], "--out", tmp_path / "run")
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["prompts"] == 4
    (metrics,) = rows(tmp_path / "run" / "metrics.jsonl")
    assert metrics["count/updates"] >= 1


def test_the_notes_preset_says_what_its_kl_leaves_out(tiny, tmp_path):
    result = done("run", "notes", *tiny[1:], *SMALL, "--out", tmp_path / "run")
    (warning,) = [line for line in result.err.splitlines() if line.startswith("warning: kl ")]
    assert "exact in reward" in warning
    assert "does not depend on the token taken" in warning
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["kl"]["estimator"], config["kl"]["place"], config["loss"]["policy"]) == ("exact", "reward", "ratio")


SMALL = [
    part
    for key, value in {
        "tokenizer.vocab_size": 300, "model.layers": 1, "model.hidden_size": 16, "model.heads": 2, "model.kv_heads": 2,
        "model.intermediate_size": 16, "model.max_positions": 48, "pretrain.steps": 2, "pretrain.sequence_length": 48,
        "ppo.iterations": 1, "ppo.prompts_per_iteration": 8, "ppo.minibatch_size": 8, "sampler.max_new_tokens": 8,
    }.items()
    for part in ("--set", f"{key}={value}")
]  # fmt: skip


# ---- a user's own rewards ----------------------------------------------------------------------------------


def test_a_plugin_of_six_lines_outside_the_repository(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(SIX_LINES)
    done("run", *tiny, "--plugin", tmp_path / "mine.py", "--reward", "vowels", "--out", tmp_path / "run")
    assert all(0 < row["reward/vowels"] < 9 for row in rows(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize("function", ["shorter", "patient"])
def test_a_function_with_the_signature_of_trl(function, tiny, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(TRL)
    monkeypatch.chdir(tmp_path)  # a relative path
    done("run", *tiny, "--reward", f"rewards.py:{function}", "--out", "run")
    sign = -1 if function == "shorter" else 1
    assert all(sign * row[f"reward/{function}"] > 0 for row in rows(tmp_path / "run" / "metrics.jsonl"))
    again = json.loads(done("evaluate", "run", "--json").out)  # the config names the file by its absolute path
    assert again["policy"] == json.loads((tmp_path / "run" / "evaluation.json").read_text())["policy"]


# ---- a user's own text -------------------------------------------------------------------------------------

CHINESE = [
    "今天天气很好，我们去公园散步。",
    "这部电影非常感人，我看了两遍。",
    "这个水壶漏水，我很失望。",
    "昨天下雨了，路上很滑。",
]


def test_a_text_of_chinese_trains_and_decodes(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(line + str(n) for n in range(30) for line in CHINESE) + "\n", encoding="utf-8")
    done("run", *tiny, "--set", f"corpus.text={text}", "--set", "pretrain.steps=60", "--out", tmp_path / "run",
         "--reward", "keywords", "--set", 'rewards.keywords.words=["电影"]')  # fmt: skip
    shown = [row for row in rows(tmp_path / "run" / "samples.jsonl") if row.get("stage") == "evaluation"]
    assert all(any("一" <= c <= "鿿" for c in row["prompt"]) for row in shown)
    assert any("一" <= c <= "鿿" for row in shown for c in row["policy"])
    sampled = done("sample", tmp_path / "run", "今天", "-n", 2)
    assert all(line.startswith("今天") for line in sampled.out.splitlines())


def test_queries_from_a_json_lines_file_with_columns_that_a_reward_reads(tiny, tmp_path):
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"query": f"the cat {n}", "wanted": n % 7}) + "\n" for n in range(40)))
    (tmp_path / "near.py").write_text("def near(completions, wanted):\n    return [float(w) for w in wanted]\n")
    done("run", *tiny, "--set", f"corpus.prompts={queries}", "--reward", f"{tmp_path}/near.py:near",
         "--out", tmp_path / "run")  # fmt: skip
    shown = [row for row in rows(tmp_path / "run" / "samples.jsonl") if row.get("stage") == "evaluation"]
    assert shown
    assert all(row["policy_score"] == int(row["prompt"].split()[-1]) % 7 for row in shown)


def test_fewer_than_ten_prompts_serve_for_both_and_the_run_says_so(tiny, tmp_path):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"question": "the cat"}\n{"question": "a dog"}\n')
    result = done("run", *tiny, "--set", f"corpus.prompts={queries}", "--out", tmp_path / "run")
    assert "warning: only 2 distinct prompts: evaluation uses the training prompts" in result.err
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["prompts"] == 2


def test_a_run_in_which_nothing_is_scored_says_so_once_and_measures_no_gain(tiny, tmp_path):
    (tmp_path / "none.py").write_text("def none(completions):\n    return [None] * len(completions)\n")
    run, sets = tmp_path / "run", ("--set", "run.checkpoint_every=1", "--set", "ppo.iterations=1")
    sets += ("--set", "ppo.prompts_per_iteration=16")  # of fewer it may be chance
    events = done("run", *tiny, "--reward", f"{tmp_path}/none.py:none", *sets, "--out", run, "--json").events
    said = [e["message"] for e in events if e["event"] == "warning" and "nothing is learned" in e["message"]]
    assert [text.partition(" (")[0] for text in said] == ["iteration 1: no reward applies to any of the responses"]
    (step,) = [e for e in events if e["event"] == "step"]
    assert [step[n] for n in ("objective/scores", "objective/kl", "reward/none", "count/updates")] == [None] * 3 + [0]
    last = events[-1]
    assert [last[name] for name in ("score_gain", "score_gain_ci95", "win_rate")] == [None, None, None]
    assert last["policy"]["score_mean"] is None
    assert {row.get("score") for row in rows(run / "samples.jsonl")} == {None}
    assert "<b>-</b><span>score gain" in (run / "report.html").read_text()
    assert "score gain -, better on - of the prompts" in done("evaluate", run).out
    assert measures_of(run)["score_gain"] is None
    (run / "evaluation.json").unlink()
    resumed = done("run", "--resume", run, "--json").events
    assert [e["message"] for e in resumed if e["event"] == "warning"] == []  # not even on prompts
    resumed = done("run", "--resume", run, "--set", "ppo.iterations=2", "--json").events
    assert [e["step"] for e in resumed if e["event"] == "step"] == [2]
    assert not any("nothing is learned" in e.get("message", "") for e in resumed)


def test_a_policy_loss_that_sees_nothing_of_the_policy_is_refused_before_anything_is_trained(tiny, tmp_path):
    (tmp_path / "blind.py").write_text("def blind(advantages):\n    return -advantages\n")
    refused(5, "run", *tiny, "--loss", f"{tmp_path}/blind.py:blind", "--set", f"run.bases={tmp_path / 'bases'}",
            "--out", tmp_path / "run", said=("blind", "does not take logprobs", "no gradient"))  # fmt: skip
    assert not (tmp_path / "bases").exists()
    (tmp_path / "deaf.py").write_text("def deaf(old_logprobs, ref_logprobs):\n    return old_logprobs - ref_logprobs\n")
    refused(5, "run", *tiny, "--kl", f"{tmp_path}/deaf.py:deaf", "--set", "kl.place=both",
            "--out", tmp_path / "other", said=("deaf", "kl.place = both", "no gradient"))  # fmt: skip


# ---- a terminal that goes away -----------------------------------------------------------------------------


def test_an_interrupt_ends_with_one_line_and_130(tiny, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(composition, "run_ppo", interrupted)
    result = call("run", *tiny, "--out", tmp_path / "run")
    said = f"interrupted; go on with: minirlhf run --resume {tmp_path / 'run'}"
    assert (result.code, result.err.splitlines()[-1]) == (130, said)


def test_a_terminal_that_is_closed_stops_nothing_before_the_save_that_its_hangup_asks_for(monkeypatch):
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stderr", file)
        os.close(ours)
        tell("nobody reads this")
        tell("nor this")


def test_a_reference_that_was_written_to_ends_the_run_without_a_result(tiny, tmp_path, monkeypatch):
    sound = composition.run_ppo

    def meddling(run, training):
        sound(run, training)
        training.state.reference.policy.model.norm.weight.data[0] += 1e-6

    monkeypatch.setattr(composition, "run_ppo", meddling)
    result = call("run", *tiny, "--out", tmp_path / "run")
    assert result.code == 1
    assert "no longer what was frozen" in result.err
    assert not (tmp_path / "run" / "evaluation.json").exists()


# ---- precision --------------------------------------------------------------------------------------------


def test_bfloat16_is_told_guarded_and_leaves_the_evaluation_in_float32(tiny, tmp_path, monkeypatch):
    lower = (*tiny, "--set", "ppo.precision=bfloat16")
    events = done("run", *lower, "--out", tmp_path / "a", "--json").events
    saved = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    (stage,) = [e for e in events if e.get("stage") == "ppo"]
    assert any("bfloat16: policy/first_log_ratio is its rounding" in note for note in stage["notes"])
    again = json.loads(done("evaluate", tmp_path / "a", "--json").out)
    del again["warnings"]
    assert again == {k: v for k, v in saved.items() if k not in ("seconds", "made_of")}
    done("run", *tiny, "--out", tmp_path / "b")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] != weights[1]
    monkeypatch.setattr(guards, "MOST_ROUNDING", -1.0)
    line = refused(2, "run", *lower, "--out", tmp_path / "c", said=("bfloat16 moves log-probs by", "ppo.precision"))
    assert "use float32" in line
