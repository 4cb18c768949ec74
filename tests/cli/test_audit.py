"""`minirlhf audit` from the outside: its tables, its JSON, plugins in it, the picture, what it refuses."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.cli.calling import done, refused

WRONG = """from minirlhf import hookimpl

def backwards(rewards, values, mask, bootstrap_values):
    return values - rewards

@hookimpl
def register_advantage_functions():
    return {"backwards": backwards}
"""
FIELDS = ("kind", "name", "place", "value_bias", "value_std", "gradient_bias", "gradient_cosine")


def test_one_json_object_a_line_with_the_fields_that_apply():
    rows = done("audit", "kl", "k1", "k3", "--json").events
    assert {row["name"] for row in rows} == {"k1", "k3"}
    places = [row for row in rows if "place" in row]
    assert [row["place"] for row in places] == ["reward", "loss", "both"] * 2
    for row in places:
        assert set(FIELDS) <= set(row)
    assert places[0]["gradient_bias"] < 1e-6
    assert {row["table"] for row in rows if "table" in row} == {"schulman", "sequences"}


@pytest.mark.slow
def test_a_plugin_is_audited_with_the_built_ins_and_found_wrong(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    rows = done("audit", "advantage", "--plugin", tmp_path / "wrong.py", "--json").events
    names = {row["name"] for row in rows}
    assert {"backwards", "gae", "rloo", "td"} <= names
    (verdict,) = [row["verdict"] for row in rows if row["name"] == "backwards" and "verdict" in row]
    assert "points away from the objective" in verdict
    named = done("audit", "advantage", f"{tmp_path / 'wrong.py'}:backwards", "--json").events
    assert {row["name"] for row in named} == {"backwards"}


def test_options_of_a_single_component_and_the_runs_own_settings_count():
    rows = done("audit", "loss", "ppo_clip", "--set", "loss.clip=1e-9", "--json").events
    tight = {row["distance"]: row["held_back"] for row in rows}
    rows = done("audit", "loss", "ppo_clip", "--json").events
    assert tight[0.003] > {row["distance"]: row["held_back"] for row in rows}[0.003] == 0
    biased = done("audit", "kl", "k1", "--set", "loss.aggregation=sequence_mean", "--json").events
    assert next(row for row in biased if row.get("place") == "reward")["gradient_bias"] > 0.05


def test_the_table_ends_with_a_verdict_a_line_and_the_picture_is_drawn(tmp_path):
    shown = done("audit", "--svg", tmp_path / "a.svg")
    verdicts = shown.out.partition("\nverdicts\n")[2].splitlines()
    assert "  kl        k1 in reward: the KL of the whole response, exactly" in verdicts
    assert any(line.startswith("  advantage gae (lam 0.95): ") for line in verdicts)
    assert any(line.startswith("  loss      ppo_penalty: ") for line in verdicts)
    assert len(verdicts) == 3 * 6 + 11 + 4
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for name in ("k1, reward", "gae, noisy", "ppo_clip"):
        assert name in drawn


def test_a_function_of_groups_alone():
    (row,) = done("audit", "advantage", "rloo", "--json").events
    assert row["gradient_bias"] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gae"], "'gae' is no kind"),
        (["kl", "k9"], "unknown KL estimator 'k9'"),
        (["advantage", "gae", "--set", "advantage.lamb=1"], "advantage.lamb"),
    ],
)
def test_what_cannot_be_audited_is_refused(arguments, said):
    refused(2, "audit", *arguments, said=(said,))


def test_without_matplotlib_the_picture_is_refused_before_the_work(monkeypatch, tmp_path):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else real(name, *a))
    refused(2, "audit", "--svg", tmp_path / "a.svg", said=("pip install 'minirlhf[plot]'",))
    assert not (tmp_path / "a.svg").exists()
