"""Laps: each ends where the next one begins."""

from minirlhf.rl import laps


def test_laps_by_a_clock_that_stands_at_10_12_and_a_half_and_16(monkeypatch):
    monkeypatch.setattr(laps, "perf_counter", iter([10.0, 12.5, 16.0]).__next__)
    watch = laps.Laps()
    watch.end("time/rollout")
    watch.end("time/score")
    assert watch.seconds == {"time/rollout": 2.5, "time/score": 3.5}
