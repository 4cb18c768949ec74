"""The report of a run: what its directory says, whatever stands in it."""

import json
import math
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minirlhf.errors import UsageError
from minirlhf.report import token_data
from minirlhf.report.of_run import alarms, cards, checks, components_used, curves, frontier, run_page, write_report
from minirlhf.report.token_data import kept_steps, packed
from tests.report.test_page import Read
from tests.report.test_tokens import read
from tests.report.test_tokens import row as token_row


def data(page):
    return json.loads("".join(Read(page).code["data"]))


def test_components_are_written_as_in_the_configuration():
    config = {"rewards": {"mine": {"use": "length", "normalize": False, "weight": 2.0}}, "kl": {"estimator": "k1"}}
    components = {"kl": "k1", "reward mine": "length (normalize = false, weight = 2.0)"}
    assert dict(components_used(config)) == components
    config |= {"model": {"path": "/m", "dtype": "bfloat16"}, "lora": {"rank": 8, "dropout": 0.0}}
    made_of = {"model": "/m (dtype = bfloat16)", "adapters": "LoRA (rank = 8)"}
    assert dict(components_used(config)) == made_of | components


def test_a_finished_run_is_on_its_page(finished):
    run, events = finished
    page = (run / "report.html").read_text()
    found, text = data(page), "\n".join(Read(page).text)
    assert page == run_page(run)  # it was written when everything was there
    assert found["steps"] == [1, 2, 3, 4]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found["metrics"]["objective/kl"] == pytest.approx([r["objective/kl"] for r in rows], rel=1e-5)
    assert next(c for c in found["curves"] if c["title"] == "KL to the reference")["target"] == 0.5
    assert {r["step"] for r in found["tokens"]["rows"]} == {1, 2, 3, 4}
    first = next(e for e in events if e["event"] == "sample")
    assert "".join(found["tokens"]["texts"][i] for i in found["tokens"]["rows"][0]["tokens"]) == "".join(
        first["tokens"]
    )
    assert found["tokens"]["rows"][0]["advantage"] == pytest.approx(first["advantages"], rel=1e-4, abs=1e-9)
    summary = events[-1]
    assert f"{summary['score_gain']:+.3f}" in text
    assert summary["samples"][0]["policy"] in text
    state = json.loads((run / "checkpoints" / "step_00000004" / "state.json").read_text())
    for fact in ("tokenizer", "prompts", "torch"):
        assert str(state[fact]) in text


def test_a_run_that_is_going_on_has_a_page_too(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(
        finished[0], run, ignore=shutil.ignore_patterns("model", "reference", "evaluation.json", "report.html")
    )
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # a torn line
    assert write_report(run) == run / "report.html"
    text = "\n".join(Read((run / "report.html").read_text()).text)
    assert "2 of 4 iterations" in text
    assert "win_rate" not in text


def test_where_there_is_no_run_nothing_is_written(tmp_path):
    with pytest.raises(UsageError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_plugin_is_loaded_for_a_page(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "bad.py").write_text("raise SystemExit('loaded')")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(f'plugins = ["{tmp_path}/bad.py"]\n{config}')
    write_report(run)


INNER = [
    "verdict",
    "best_known",
    "against",
    "what",
    "true_score_parts",
    "residual_std_on_reference",
    "step",
    "n",
    "kl",
    "score",
    "total",
    "ppo",
    "score_mean",
    "eos_rate",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner),
    max_leaves=6,
)
KEYS = ["step", "prompt", "reference", "policy", "policy_score", "reference_score", "score_gain", "score_gain_ci95"]
KEYS += [
    "objective",
    "objective_unknown",
    "true_score_gain",
    "true_score_seen",
    "true_score_rewarded",
    "seconds",
    "best_of_n",
    "objective/kl",
    "count/updates",
    "kl/coef",
    "reward/a",
    "policy/entropy_avg",
    "prompts",
]


@pytest.mark.parametrize(
    ("files", "toml"),
    [
        ({"evaluation": {"reference": {"score_mean": 10**400}, "policy": {"score_mean": 1.0}}}, ""),
        ({"evaluation": {"score_gain": 1.0, "score_gain_ci95": [10**400, 1], "seconds": {"total": 10**400}}}, ""),
        ({"evaluation": {"best_of_n": [{"n": math.nan, "kl": 1.0, "score": 1.0}]}}, ""),
        ({"metrics": {"step": 1, "count/updates": 1.0, "response/length": 10**400, "response/eos_rate": 1.0,
                      "objective/score_length_correlation": 0.0, "response/repetition": 0.0,
                      "policy/entropy_avg": 10**400, "value/explained_variance": 0.0}}, ""),
        ({"samples": {"prompt": "p", "reference": "a", "policy": "b", "policy_score": 0.5}}, ""),
        ({}, "[run]\nseed = " + "9" * 6000),
        ({}, "[ppo]\niterations = 0x" + "f" * 6000),
    ],
)  # fmt: skip
def test_numbers_that_no_run_has_are_no_traceback(tmp_path, files, toml):
    (tmp_path / "config.toml").write_text(toml)
    for name, content in files.items():
        (tmp_path / f"{name}.json{'l' * (name in ('metrics', 'samples'))}").write_text(json.dumps(content))
    data(run_page(tmp_path))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), max_size=3), st.text(max_size=30))
def test_whatever_stands_in_the_files_there_is_a_page(tmp_path, rows, toml):
    (tmp_path / "config.toml").write_text(toml, encoding="utf-8", errors="replace")
    for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "evaluation.json").write_text(json.dumps(rows[0] if rows else 3))
    data(run_page(tmp_path))


# ---- parts -------------------------------------------------------------------------------------------------


def test_of_many_tokens_whole_steps_are_kept_evenly_with_the_first_and_the_last(monkeypatch):
    logged = dict.fromkeys(range(1, 22), 20)  # 420 tokens
    assert kept_steps(logged) == set(logged)
    monkeypatch.setattr(token_data, "TOKENS", 100)  # room for 5 of the 21 steps
    assert kept_steps(logged) == {1, 6, 11, 16, 21}
    monkeypatch.setattr(token_data, "TOKENS", 1)
    assert kept_steps(logged) == {1, 21}
    assert kept_steps({}) == set()


def test_the_page_says_that_it_leaves_steps_out(finished, monkeypatch):
    whole = "\n".join(Read(run_page(finished[0])).text)
    monkeypatch.setattr(token_data, "TOKENS", 1)
    page = run_page(finished[0])
    assert {row["step"] for row in data(page)["tokens"]["rows"]} == {1, 4}
    assert "2 of 4 logged iterations are shown" in "\n".join(Read(page).text)
    assert "logged iterations are shown" not in whole


def test_every_text_is_in_the_page_once(tmp_path):
    found = packed(read(tmp_path, token_row(), token_row(tokens=["b", " a"])))
    assert found["texts"] == [" a", "", "<eos>", "b"]
    assert [row["tokens"] for row in found["rows"]] == [[0, 1], [3, 0]]
    assert found["rows"][0]["likeliest"] == [[[0, -0.1, -0.2], [2, -2.5, None]], []]
    assert found["rows"][0]["clipped"] == [0]


def test_curves_are_drawn_where_there_is_something_to_see():
    rows = [{"step": i, "objective/kl": 1.0, "kl/coef": 0.1, "objective/scores": 2.0, "reward/a": 1.0} for i in (1, 2)]
    assert [c["names"] for c in curves(rows, {})] == [["objective/scores"], ["objective/kl"]]
    rows[1] |= {"reward/b": 1.0, "kl/coef": 0.2, "reward/b/detail": 3.0}
    assert curves(rows, {})[0]["names"] == ["objective/scores", "reward/a", "reward/b"]
    assert ["kl/coef"] in [c["names"] for c in curves(rows, {})]
    steered = curves(rows, {"kl": {"controller": "adaptive", "target": 6.0}})
    assert [c.get("target") for c in steered if c["names"] == ["objective/kl"]] == [6.0]


@pytest.mark.parametrize(
    ("exact", "said"),
    [
        ({"beta": 0.3, "changed": []}, "optimality F of the problem's score - 0.3 KL"),
        (
            {"beta": 0.3, "changed": ["ppo.score_clip = 1"]},
            "optimality F of the problem's score - 0.3 KL; the run optimised another (ppo.score_clip = 1)",
        ),
        ({"objective": 1.0}, "optimality F"),  # of an earlier version
        (None, "optimality F"),
        ({"beta": "x", "changed": 3}, "optimality F"),
    ],
)
def test_f_says_of_which_objective_it_is(exact, said):
    assert ("0.9000", said) in list(cards({"optimality": 0.9, "exact": exact}))


def test_the_alarms_of_a_run_are_found_again():
    calm = {
        "objective/score_length_correlation": 0.0, "response/eos_rate": 1.0, "response/length": 20.0,
        "response/repetition": 0.0, "policy/entropy_avg": 1.0, "value/explained_variance": 0.1, "count/updates": 4.0,
        "count/reward_errors": 0.0, "count/flat_batches": 0.0, "policy/logprob_grad_avg": 0.8, "episode": 8.0,
        "policy/grad_norm": 3.0, "objective/scores": 1.0, "objective/scores_std": 0.5,
    }  # fmt: skip
    rows = [{"step": 1, **calm}, {"step": 2, "count/updates": 1.0}, {"step": 3, **calm, "policy/entropy_avg": 0.1}]
    ((step, text),) = alarms(rows, {})
    assert step == 3
    assert "entropy fell from 1.00 to 0.10" in text


def test_checks_compare_the_first_iteration_with_the_last():
    rows = [
        {"step": 1, "response/length": 10.0},
        {"step": 2, "response/length": None},
        {"step": 3, "response/length": 30.0},
    ]
    assert [(name, first, last) for name, first, last, _, _ in checks(rows)] == [("tokens a response", 10.0, 30.0)]


def test_cards_and_frontier_leave_out_what_is_not_known():
    assert list(cards({})) == []
    assert list(cards({"score_gain": 0.5, "score_gain_ci95": [0.4, 0.6], "win_rate": "x"})) == [
        ("+0.500", "score gain, 95 % interval +0.400 to +0.600")
    ]
    unmeasured = {"score_gain": None, "score_gain_ci95": None, "win_rate": None, "optimality": None}
    assert [value for value, _ in cards(unmeasured)] == ["-", "-"]
    point = {"n": 2, "kl": math.log(2) - 0.5, "score": 1.0, "score_se": 0.2}
    policy = {"score_mean": 3.0, "score_std": 0.4}
    evaluation = {"best_of_n": [point, 7], "kl_nats_per_sequence": 2.0, "policy": policy, "prompts": 256}
    config = {"ppo": {"prompts_per_iteration": 32, "responses_per_prompt": 4}, "evaluation": {"residual_prompts": 32}}
    known = {"iterations": False, "best_of_n": [[0.193147, 1.0, 0.2]], "policy": [2.0, 3.0, 0.025]}  # 0.4 / sqrt(256)
    assert frontier(evaluation, config) == known | {"responses": 128, "few": 32, "prompts": 256}
    assert frontier(evaluation | {"prompts": 16}, config)["few"] == 16  # fewer held-out prompts than were asked for
    unknown = dict.fromkeys(("responses", "few", "prompts"))
    del point["score_se"], policy["score_std"]
    assert frontier({**evaluation, "prompts": None}, {}) == unknown | {
        "iterations": False, "best_of_n": [[0.193147, 1.0, None]], "policy": [2.0, 3.0, None],
    }  # fmt: skip


def test_iterations_stand_beside_the_evaluation_only_where_they_measure_the_same():
    like = {"truncation": {"rule": "keep"}, "ppo": {"score_normalize": False}, "kl": {"estimator": "k1"}}
    assert frontier({}, like)["iterations"]
    for section, key, value in (
        ("truncation", "rule", "penalty"),
        ("ppo", "score_normalize", True),
        ("kl", "estimator", "k2"),
    ):
        assert not frontier({}, {**like, section: {key: value}})["iterations"]
