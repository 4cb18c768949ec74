"""The token log read again: quantities by hand, and rows that are none."""

import json
import math

import pytest

from minirlhf.report import tokens
from minirlhf.report.token_data import kept_steps, three_digits
from minirlhf.report.tokens import COLUMNS, QUANTITIES, logged_tokens, read_token_log

LIKELIEST = [[" a", -0.1, -0.2], ["<eos>", -2.5, None]]


def row(**changes):
    """Two tokens: pi/ref = 2 and 1/2, pi/old = 1.5 and 1."""
    plain = {name: [0.5, -0.5] for name in COLUMNS}
    logprobs = {
        "logprob": [math.log(0.6), math.log(0.2)], "old_logprob": [math.log(0.4), math.log(0.2)],
        "ref_logprob": [math.log(0.3), math.log(0.4)],
    }  # fmt: skip
    texts = {"step": 3, "prompt": "p", "score": 1.0, "terminated": True, "tokens": [" a", ""]}
    return {**texts, **plain, **logprobs, "clipped": [True, False], "likeliest": [LIKELIEST, []], **changes}


def read(path, *rows):
    file = path / "tokens.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return read_token_log(file)


def test_estimators_and_ratio_by_hand(tmp_path):
    """d = log 2 and -log 2: k1 = d, k2 = d^2/2, k3 = exp(-d) - 1 + d, abs = |d|."""
    (found,) = read(tmp_path, row())
    log2 = math.log(2)
    expected = {
        "prob": [0.6, 0.2], "old_prob": [0.4, 0.2], "ref_prob": [0.3, 0.4],
        "ratio": [1.5, 1.0], "k1": [log2, -log2], "k2": [log2**2 / 2] * 2, "abs": [log2, log2],
        "k3": [0.5 - 1 + log2, 2 - 1 - log2],
    }  # fmt: skip
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5)
    assert set(QUANTITIES) <= set(found)


def test_a_log_prob_of_minus_infinity_is_none_in_what_follows(tmp_path):
    (found,) = read(tmp_path, row(ref_logprob=[None, math.log(0.4)]))
    assert [found[name][0] for name in ("k1", "k2", "k3", "abs", "ref_prob")] == [None] * 5
    assert found["ratio"][0] == pytest.approx(1.5)


def test_fields_that_are_not_needed_may_be_missing(tmp_path):
    assert len(read(tmp_path, row(clipped=None), row(score=None), row(likeliest=[[], []]))) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1}, {"step": True}, {"step": 1 << 60}, {"step": "3"}, {"prompt": None}, {"score": "x"},
        {"tokens": []}, {"tokens": "ab"}, {"tokens": [1, 2]}, {"logprob": [1.0]}, {"logprob": ["a", "b"]},
        {"logprob": [1e400, 0.0]}, {"value": [10**400, 0]}, {"exact": None}, {"clipped": [1, 0]}, {"clipped": [True]},
        {"likeliest": [LIKELIEST]}, {"likeliest": [[1], [2]]}, {"likeliest": [[["a", "b", "c"]], []]},
        {"likeliest": [LIKELIEST * 3, []]}, {"likeliest": None}, {"reward": {"a": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_run_writes_is_left_out(tmp_path, changes):
    assert len(read(tmp_path, row(**changes), row())) == 1


@pytest.mark.parametrize("name", list(row()))
def test_a_row_without_one_of_its_fields_is_left_out(tmp_path, name):
    changed = row()
    del changed[name]
    assert len(read(tmp_path, changed, row())) == (2 if name == "terminated" else 1)


def test_a_page_checks_each_row_of_the_log_once(tmp_path, monkeypatch):
    """Its first reading counts tokens and nothing else: a check takes as long as parsing."""
    sound, checked = tokens.sound, []
    monkeypatch.setattr(tokens, "sound", lambda row: checked.append(row["step"]) or sound(row))
    rows = [row(), row(step=5), row(step=5, exact=None), row(step="6"), row(step=7, tokens="ab")]
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 8')
    logged = logged_tokens(tmp_path / "tokens.jsonl")
    assert logged == {3: 2, 5: 4}  # the row without `exact` is left out by the second reading
    assert checked == []
    assert [r["step"] for r in read_token_log(tmp_path / "tokens.jsonl", kept_steps(logged))] == [3, 5]
    assert checked == [3, 5, 5, "6", 7]


def test_three_digits_are_rounded_once():
    """By way of six digits the first would be 1.235, and then 1.24."""
    assert [three_digits(x) for x in (1.2349999, -12345, 0)] == [1.23, -12300, 0]
    assert [three_digits(x) for x in (None, math.inf, True)] == [None] * 3
