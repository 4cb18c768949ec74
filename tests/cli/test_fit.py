"""Lines and tables at the width of a terminal, by hand."""

import pytest

from minirlhf.cli.fit import cells, fitting, lines, listing, start_of, table, wrapped


def test_a_wide_character_takes_two_columns():
    assert [cells(text) for text in ("tea", "茶", "茶 tea", "e\u0301", "")] == [3, 2, 6, 1, 0]
    assert [start_of("茶茶a", room) for room in (1, 2, 3, 4, 5)] == ["茶", "茶", "茶", "茶茶", "茶茶a"]


def test_text_is_wrapped_between_words_and_indented_to_its_start():
    text = "one two three four five six seven"
    assert wrapped(text, None, "  a  ") == f"  a  {text}"
    assert wrapped(text, 25, "  a  ").split("\n") == ["  a  one two three four", "     five six seven"]
    assert wrapped("x" * 45, 20).split("\n") == ["x" * 20, "x" * 20, "x" * 5]
    more = wrapped(f"{text} eight nine ten", 24, hang=5)
    assert more.split("\n") == ["one two three four five", "     six seven eight", "     nine ten"]
    assert wrapped("", 20, "  a  ") == "  a  "
    assert wrapped("  a  b", 40) == "  a  b"  # the spaces of the text are its own


def test_chinese_breaks_between_characters_and_before_no_full_stop():
    text = "我喜欢这个茶壶。很好用"  # 11 characters of two columns
    assert wrapped(text, 20).split("\n") == ["我喜欢这个茶壶。很好", "用"]
    assert wrapped("我喜欢这个茶壶很好用。好", 20).split("\n") == ["我喜欢这个茶壶很好", "用。好"]
    assert wrapped("tea 我喜欢这个茶壶。很好用", 20).split("\n") == ["tea 我喜欢这个茶壶。", "很好用"]


ROWS = [["variant", "score", "KL"], ["a", "+0.50", "2.0"], ["茶", "+10.25", "-"]]


def test_a_change_is_one_word_and_a_mark_stays_with_its_word():
    assert lines("made 38 -> 5", 10) == ["made", "38 -> 5"]
    assert lines("一二三四，五", 9) == ["一二三", "四，五"]
    assert lines("得分 +0.5。", 9) == ["得分", "+0.5。"]
    assert lines("one two three", 8) == ["one two", "three"]


def test_a_table_aligns_by_columns_of_the_terminal():
    assert table(ROWS, None) == ["variant   score   KL", "a         +0.50  2.0", "茶       +10.25    -"]


def test_columns_that_do_not_fit_come_below_with_the_labels_again():
    rows = [["variant", "b" * 10, "c" * 10], ["x", "1", "2"]]  # 7 + 12 + 12 columns
    assert table(rows, 31) == [f"variant  {'b' * 10}  {'c' * 10}", f"x{' ' * 17}1{' ' * 11}2"]
    below = [f"variant  {'b' * 10}", f"x{' ' * 17}1", "", f"variant  {'c' * 10}", f"x{' ' * 17}2"]
    assert table(rows, 30) == below


def test_a_block_below_leaves_out_rows_that_have_nothing_in_it():
    rows = [["variant", "b" * 10, "c" * 10], ["x", "1", ""], ["y", "", "2"]]
    assert table(rows, 30)[3:] == ["", f"variant  {'c' * 10}", f"y{' ' * 17}2"]


def test_fields_are_left_out_in_order_until_a_line_fits():
    fields = ["aaaa", "bbbb", "cccc", "dddd"]  # 22 columns with their gaps
    assert fitting(fields, None, ["cccc"]) == fitting(fields, 22, ["cccc"]) == "aaaa  bbbb  cccc  dddd"
    assert fitting(fields, 21, ["cccc", "bbbb"]) == "aaaa  bbbb  dddd"
    assert fitting(fields, 15, ["cccc", "bbbb"]) == fitting(fields, 3, ["cccc", "bbbb"]) == "aaaa  dddd"


def test_a_long_label_takes_several_lines():
    label = "ppo.epochs=1 kl.coef=0.1 loss.function=ratio"  # 44 columns, of which a third of 75 are given
    found = table([["variant", "score"], [label, "1"]], 75)
    assert found == [f"variant{' ' * 20}score", f"ppo.epochs=1 kl.coef=0.1{' ' * 7}1", "loss.function=ratio"]


@pytest.mark.parametrize("width", [24, 80, 110, 200])
def test_a_listing_fits(width):
    rows = [("kind", "name", ""), ("reward", "sentiment", "Positive minus negative words, negation considered. " * 3)]
    found = listing(rows, width)
    assert max(map(cells, found)) <= width
    assert " ".join(" ".join(found).split()).count("negation considered.") == 3


def test_the_prose_of_a_listing_is_wrapped_under_itself():
    rows = [("kind", "name", ""), ("kl", "k1", "one two three four five six")]
    assert listing(rows, 32) == ["kind  name", "kl    k1    one two three four", "            five six"]
    assert listing(rows, None)[1] == "kl    k1    one two three four five six"
    below = ["kind  name", "kl    k1", "    one two three four five", "    six"]
    assert listing(rows, 30) == below  # 18 columns would be left beside the names
