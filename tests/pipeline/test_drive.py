"""The PPO stage: rows of a run's own metrics that somebody edited."""

from types import SimpleNamespace

from minirlhf.config.layers import load_config
from minirlhf.pipeline.drive import past_alarms
from minirlhf.store.jsonl import json_line
from tests.fuzz.test_own_files import METRICS
from tests.report.test_tokens import row

CONFIG = load_config("tiny", sets=["ppo.prompts_per_iteration=64", "ppo.minibatch_size=64"])[0]


def test_rows_that_nobody_measured_raise_no_alarm_and_no_error(tmp_path):
    """A number that no float holds, a text, a row of another file: each is passed over, and the next is looked at."""
    odd = [{"response/length": 10**400}, {"policy/entropy_avg": "low"}, {"episode": []}, {"step": None}]
    last = {**METRICS, "step": 2, "response/eos_rate": 0.1}
    rows = [METRICS, *({**METRICS, **changes} for changes in odd), row(), last]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json_line(r)}\n" for r in rows))
    training = SimpleNamespace(parts=SimpleNamespace(learns_values=True))
    alarms = past_alarms(SimpleNamespace(directory=tmp_path, config=CONFIG), training)
    assert alarms.said == {"eos"}


def test_what_was_not_measured_is_null_in_the_file_and_no_obstacle(tmp_path):
    """A resumed run does not say again that a reward never applied, nor does a null hide the row from other alarms."""
    rows = [{**METRICS, "step": step, "reward/late": None, "value/explained_variance": None} for step in (1, 2, 3)]
    rows.append({**METRICS, "step": 4, "response/eos_rate": 0.1, "reward/late": None})
    rows = [{**r, "episode": 64.0 * r["step"]} for r in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json_line(r)}\n" for r in rows))
    training = SimpleNamespace(parts=SimpleNamespace(learns_values=True))
    alarms = past_alarms(SimpleNamespace(directory=tmp_path, config=CONFIG), training)
    assert alarms.said == {"eos", "unused"}
    assert alarms.unused == {"reward/late"}
