"""The tables of a comparison and its page: intervals, differences to the first variant, verdicts."""

import pytest

from minirlhf.report.of_compare import against_first, table_of, verdict, write_compare_page


def minus_first(higher, lower, ends=None, needed=None):
    pairs = higher + lower
    found = {"pairs": pairs, "higher": higher, "lower": lower, "mean": sum(ends) / 2 if ends else 0.1}
    return {**found, "std": 1.0, "ci95": list(ends), "seeds_to_tell": needed} if ends else found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (minus_first(5, 0, (0.1, 0.3), 3), "beats the first in J"),
        (minus_first(0, 5, (-0.3, -0.1), 3), "worse than the first in J"),
        (minus_first(4, 1, (-0.1, 0.3), 17), "5 seeds do not tell; about 17 would"),
        (minus_first(2, 3, (-0.3, 0.3)), "5 seeds do not tell; more than 1000 would be needed"),
        (minus_first(1, 0), "one seed does not tell"),
        (minus_first(0, 0), "no seed in common"),
        ({**minus_first(0, 0, (0.0, 0.0)), "pairs": 3}, "equal in every seed"),
        (minus_first(3, 0, (0.0, 0.2), 4), "3 seeds do not tell; about 4 would"),  # an end at 0 does not leave it out
    ],
)
def test_the_verdict_is_that_of_the_interval_and_names_the_measure(found, said):
    assert verdict(found, "J") == said


ROWS = [
    {"seeds": [0, 1], "failed": {}, "measures": {"objective": {"mean": 0.5, "ci95": [0.25, 0.75]}}},
    {
        **{"seeds": [0, 1], "failed": {"2": "diverged"}},
        "measures": {
            "objective": {"mean": 0.625, "ci95": [0.5, 0.75], "minus_first": minus_first(1, 1, (-0.5, 0.75), 40)}
        },
    },
    {"seeds": [], "failed": {"0": "diverged"}, "measures": {}},
]


def test_the_tables_hold_intervals_and_differences():
    heads, lines = table_of(["a", "b", "c"], ROWS)
    assert heads == ["variant", "seeds", "failed", "J"]
    assert lines == [
        ["a", "2", "0", "+0.500 [+0.250, +0.750]"],
        ["b", "2", "1", "+0.625 [+0.500, +0.750]"],
        ["c", "0", "1", "-"],
    ]
    assert against_first(["a", "b", "c"], ROWS, "objective") == (
        ["minus a", "difference in J", "higher in", "verdict"],
        [
            ["b", "+0.125 [-0.500, +0.750]", "1 of 2 seeds", "2 seeds do not tell; about 40 would"],
            ["c", "-", "0 of 0 seeds", "no seed in common"],
        ],
    )
    assert against_first(["a"], ROWS[:1], "objective") is against_first(["a", "b"], ROWS[:2], None) is None


def test_the_page_says_what_the_terminal_says(tmp_path):
    runs = {name: {} for name in "abc"}
    notes = ["Variants are compared in J.", "All seeds share <b>base</b>."]
    page = write_compare_page(tmp_path, ROWS, runs, "objective", notes).read_text(encoding="utf-8")
    for text in ("difference in J", "[-0.500, +0.750]", "2 seeds do not tell; about 40 would", notes[0]):
        assert text in page
    assert "All seeds share &lt;b&gt;base&lt;/b&gt;." in page
    assert "against the first variant" not in write_compare_page(tmp_path, ROWS, runs).read_text(encoding="utf-8")
