"""Least spans of axes, by hand."""

import pytest

from minirlhf.report.axes import least_spans
from minirlhf.report.of_run import CURVES

SCORES = {"objective/scores": 0.5, "objective/scores_std": 0.4}


def test_a_share_that_falls_by_less_than_a_hundredth_takes_less_than_a_tenth_of_the_height():
    spans = least_spans([[{"step": 1, "response/eos_rate": 1.0}, {"step": 2, "response/eos_rate": 0.992}]])
    assert spans == {"response/eos_rate": 0.1}
    assert (1.0 - 0.992) / spans["response/eos_rate"] == pytest.approx(0.08)


def test_the_axis_of_scores_is_never_narrower_than_their_noise():
    """128 responses with a standard deviation of 0.4: 4 x 0.4 / sqrt(64) = 0.2, however little the means move."""
    rows = [{"step": i, "episode": 64.0 * i, **SCORES} for i in (1, 2, 3)]
    spans = least_spans([rows, rows])
    assert spans["objective/scores"] == pytest.approx(0.2)
    assert spans["objective/scores_std"] == pytest.approx(0.02)  # 5 % of 0.4
    assert least_spans([[{"step": 1, **SCORES}]])["objective/scores"] == pytest.approx(0.025)  # 5 %: n is not known


def test_what_has_no_natural_unit_gets_a_share_of_its_largest_value():
    rows = [{"step": 1, "tokens_per_s": 4000.0, "loss/value_avg": None}, {"step": 2, "tokens_per_s": -5000.0}]
    assert least_spans([rows]) == {"tokens_per_s": 250.0, "loss/value_avg": 0.0}
    assert least_spans([]) == least_spans([[]]) == {}


def test_every_curve_of_the_report_has_a_span():
    names = [name for _, _, wanted in CURVES for name in wanted]
    assert all(span > 0 for span in least_spans([[{"step": 1, **dict.fromkeys(names, 0.5)}]]).values())
