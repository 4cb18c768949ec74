"""Text files that the program itself wrote, damaged or invented: one line, or used as what they are.

The fast share runs by default; all of it by `pytest -m fuzz`.
"""

import json
import math
from functools import partial
from random import Random

from minirlhf.config.layers import load_config
from minirlhf.errors import CheckpointError, InputError
from minirlhf.pipeline.drive import past_alarms
from minirlhf.report.of_compare import write_compare_page
from minirlhf.report.of_run import run_page
from minirlhf.store.files import read_json
from minirlhf.store.jsonl import cut, json_line, read_rows
from minirlhf.studies import overoptimise
from minirlhf.studies.labelling import LabelFile
from minirlhf.studies.summary import measures_of
from tests.cli.calling import call
from tests.fuzz.mutate import bytes_of, json_of, put
from tests.fuzz.test_fuzz import quiet, shares, tried  # noqa: F401  # a fixture of every test here
from tests.report.test_tokens import row as token_row
from tests.store.test_jsonl import SEPARATORS
from tests.studies.test_labelling import row as label_row


def text_of(random):
    """A short text, often with a character at which str.splitlines would end a line."""
    return "".join(random.choice(["a", " ", "é", "数", "\n", '"', "\\", *SEPARATORS]) for _ in range(5))


def lines_of(rows, random):
    """Rows as JSON lines, with one of the line ends and marks that are fine."""
    end, mark = random.choice([b"\n", b"\r\n", b"\n\n"]), random.choice([b"", b"", b"\xef\xbb\xbf"])
    return mark + b"".join(json.dumps(r, ensure_ascii=random.random() < 0.5).encode() + end for r in rows)


def damaged(rows, random):
    """Rows as JSON lines, with their values or their bytes changed."""
    if random.random() < 0.5:
        changed = json_of(rows, random)
        lines = changed if isinstance(changed, list) else [changed]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()  # NaN, and halves of pairs as escapes
    content = lines_of(rows, random)
    at = content.find(b":")
    odd = random.choice([b"NaN", b"1e400", b"[" * 100_000, b"\xe9", b'"\\ud800"', b"9" * 5000, b"\0"])
    return bytes_of(content, random) if random.random() < 0.7 else content[: at + 1] + odd + content[at + 1 :]


# ---- label files ------------------------------------------------------------------------------------------


@shares(60, 2_000)
def test_a_label_file_is_refused_with_its_line_or_gone_on_with(tmp_path, count):
    random, path, refused = Random(20), tmp_path / "a.jsonl", 0
    for _ in range(count):
        rows = [label_row(index, f"p{text_of(random)}") for index in range(random.randint(1, 3))]
        whole = random.random() < 0.2
        content = lines_of(rows, random) if whole else damaged(rows, random)
        put(path, content)
        said, file = tried(InputError, LabelFile, path)
        refused += said is not None
        if said is not None:
            assert not whole
            assert f"{path}:" in said
            assert path.read_bytes() == content
            continue
        assert not whole or file.rows == rows
        new = label_row(file.next_index, text_of(random) + "p")
        file.add(new)
        _, again = tried(InputError, LabelFile, path)
        assert again.rows == [*file.rows[:-1], new]
        assert again.undo() == new["index"]
        assert LabelFile(path).rows == file.rows[:-1]
    assert count / 4 < refused < count * 0.75


# ---- files of a run ---------------------------------------------------------------------------------------


METRICS = {"step": 1, "count/updates": 4.0, "response/length": 9.0, "response/eos_rate": 1.0, "objective/scores": 0.5,
           "objective/score_length_correlation": 0.9, "response/repetition": 0.1, "policy/entropy_avg": 2.0,
           "value/explained_variance": -0.1, "objective/kl": 1.0, "kl/coef": 0.1, "count/reward_errors": 0.0,
           "count/flat_batches": 0.0, "objective/scores_std": 1.0, "policy/logprob_grad_avg": 0.5,
           "policy/grad_norm": 1.0, "episode": 64.0, "count/unscored": 0.0, "count/masked_rows": 0.0}  # fmt: skip
SIDE = {
    "score_mean": 0.5,
    "score_std": 1.0,
    "score_p90": 1.0,
    "length_mean": 9.0,
    "eos_rate": 1.0,
    "true_score_mean": 0.5,
}
EVALUATION = {
    "prompts": 4, "reference": SIDE, "policy": SIDE, "score_gain": 0.5, "score_gain_ci95": [0.1, 0.9], "win_rate": 0.5,
    "kl_nats_per_sequence": 1.0, "kl_coef": 0.1, "optimality": None, "seconds": {"ppo": 1.0, "total": 2.0},
    "best_of_n": [{"n": 2, "kl": 0.2, "score": 0.7}], "true_score_gain": 0.5, "true_score_rewarded": ["sentiment"],
    "true_score_seen": "sentiment is rewarded", "objective": {
        "beta": 0.1, "prompts": 4, "reference": 0.1, "policy": 0.3, "policy_kl": 1.0, "share_at_most": 0.5,
        "best_of_n": [{"n": 4, "kl": 0.6, "score": 0.7, "objective": 0.6, "policy_lead": -0.3}], "not_beaten": [4],
        "best_known": {"what": "best of 4", "objective": 0.6}, "verdict": {"against": "best of 4", "outcome": "beaten"},
    },
}  # fmt: skip


def files_of(random):
    """Name -> content of the text files of a run, one of them damaged."""
    metrics = [{**METRICS, "step": step, "objective/scores": step / 7} for step in (1, 2, 3)]
    samples = [
        {"step": 1, "prompt": text_of(random), "completion": text_of(random), "score": 0.5, "kl": 1.0},
        {"stage": "evaluation", "prompt": "p", "reference": "a", "policy": text_of(random), "reference_score": 0.1,
         "policy_score": None},
    ]  # fmt: skip
    tokens = [token_row(step=step, prompt=text_of(random)) for step in (1, 2)]
    found = {"metrics.jsonl": metrics, "samples.jsonl": samples, "tokens.jsonl": tokens}
    content = {name: "".join(json_line(r) + "\n" for r in rows).encode() for name, rows in found.items()}
    content["evaluation.json"] = json.dumps(EVALUATION, indent=2).encode()
    name = random.choice(list(content))
    if name == "evaluation.json":
        changed = json.dumps(json_of(EVALUATION, random)).encode()
        content[name] = changed if random.random() < 0.5 else bytes_of(content[name], random)
    else:
        content[name] = damaged(found[name], random)
    return content


class Fresh:
    """As much of a RunContext and of a Training as `past_alarms` asks for."""

    def __init__(self, directory):
        self.directory, self.parts, self.learns_values = directory, self, True
        self.config = load_config("tiny")[0]


@shares(8, 400)
def test_what_is_left_of_a_run_is_shown_compared_and_resumed(tmp_path, count):
    random, run, lost = Random(21), tmp_path / "run", 0
    run.mkdir()
    (run / "config.toml").write_text('[run]\npreset = "tiny"\n')
    for _ in range(count):
        for name, content in files_of(random).items():
            put(run / name, content)
        assert tried((), run_page, run)[1].startswith("<!doctype html>")
        row = {"measures": {}, "failed": {}, "seeds": [0]}
        _, page = tried((), partial(write_compare_page, tmp_path, [row]), {"a": {0: run}})
        assert page.is_file()
        tried((), past_alarms, Fresh(run), Fresh(run))
        said, measures = tried(InputError, measures_of, run)
        lost += said is not None
        assert said is None or str(run / "evaluation.json") in said
        assert said or all(value is None or math.isfinite(value) for value in measures.values())
        result = call("inspect", run)
        assert (result.code, len(result.errors)) in ((0, 0), (2, 1)), result.err
    assert lost < count / 2
    assert lost or count < 100


@shares(50, 1_000)
def test_a_log_is_cut_to_whole_rows_of_its_own(tmp_path, count):
    """Whatever somebody did to the file, every line that is kept was a line of it, of a step that is done."""
    random, path = Random(22), tmp_path / "samples.jsonl"
    for _ in range(count):
        rows = [{"step": step, "prompt": text_of(random)} for step in (1, 2, 3)]
        content = damaged(rows, random)
        put(path, content)
        _, notes = tried((), cut, path, len(content) + random.choice([0, 1, 9]) - random.choice([0, 2]), 2)
        assert len(notes) <= 1
        if notes:
            kept = path.read_bytes().split(b"\n")
            assert set(kept) <= {*content.split(b"\n"), b""}
            assert all(float(row["step"]) <= 2 for row in read_rows(path))


@shares(80, 1_000)
def test_a_report_of_a_reward_model_says_its_accuracy_or_is_refused(tmp_path, monkeypatch, count):
    class Cell:
        config = None

    random, refused = Random(23), 0
    report = {"report": {"accuracy": 0.75, "pairs": 9, "reliability": []}, "seconds": 1.0}
    monkeypatch.setattr(overoptimise, "reward_model_directory", lambda _: tmp_path)
    for _ in range(count):
        changed = json.dumps(json_of(report, random)).encode()
        content = changed if random.random() < 0.5 else bytes_of(json.dumps(report).encode(), random)
        put(tmp_path / overoptimise.REPORT, content)
        said, accuracy = tried(InputError, overoptimise.accuracy_of, Cell)
        refused += said is not None
        assert said or math.isfinite(accuracy)
        for refusal in (InputError, CheckpointError):
            said, value = tried(refusal, read_json, tmp_path / overoptimise.REPORT, refusal)
            assert said or json.dumps(value, allow_nan=False)
    assert count / 4 < refused < count
