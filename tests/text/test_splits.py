"""Which groups are held out, and what is said about rows on both sides."""

import pytest

from minirlhf.text.splits import held_out_groups, most_held_out, shared_note


def test_the_limit_by_hand():
    """Twice the fair share; half of all, where that is less; the fair share, where that is more."""
    assert most_held_out(200, 100, 10) == 40  # fair: 20
    assert most_held_out(200, 100, 40) == 100  # fair: 80, twice 160, half 100
    assert most_held_out(200, 100, 90) == 180
    assert most_held_out(201, 2, 1) == 100.5


def test_a_group_that_would_swallow_the_rest_is_passed_over():
    assert held_out_groups([200, 1, 1, 1, 1], 2) == [1, 2]
    # 30 rows in 5 groups, 2 of them: fair 12, at most 15
    assert held_out_groups([10, 6, 5, 5, 4], 2) == [0, 2]
    assert held_out_groups([3, 100], 1) == [0]


@pytest.mark.parametrize("size", [1, 7])
def test_of_equal_groups_the_first_are_taken_whatever_the_share(size):
    for groups in range(2, 30):
        for count in range(1, groups):
            assert held_out_groups([size] * groups, count) == list(range(count))


def test_rows_on_both_sides_are_counted_once_and_said():
    assert shared_note("abc", "xyz", "held-out letters", "remove them") == []
    (note,) = shared_note("abcc", "acccx", "held-out letters", "remove them")
    assert note == "4 of 5 held-out letters are trained on as well, so they measure memory, too: remove them"
