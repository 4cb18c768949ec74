"""The PPO stage: rows of a run's own metrics that somebody edited."""

from types import SimpleNamespace

from minirlhf.pipeline.drive import past_alarms
from minirlhf.store.jsonl import json_line
from tests.fuzz.test_own_files import METRICS
from tests.report.test_tokens import row


def test_rows_that_nobody_measured_raise_no_alarm_and_no_error(tmp_path):
    """A number that no float holds, a text, a row of another file: each is passed over, and the next is looked at."""
    odd = [{"response/length": 10**400}, {"policy/entropy_avg": "low"}, {"count/updates": []}, {"step": None}]
    last = {**METRICS, "step": 2, "response/eos_rate": 0.1}
    rows = [METRICS, *({**METRICS, **changes} for changes in odd), row(), last]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json_line(r)}\n" for r in rows))
    training = SimpleNamespace(parts=SimpleNamespace(learns_values=True))
    alarms = past_alarms(SimpleNamespace(directory=tmp_path), training)
    assert alarms.said == {"eos"}
