"""The figure of the four models: its numbers are those of the token log, and the one in the manual is drawn whole."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.benchmarks.models_figure import CHINESE, COLUMN, ENGLISH, FIRST, WIDTH, main, shown_at

DOCS = Path(__file__).parents[2] / "docs"


def texts(path, kind=None):
    """Texts of an SVG, those of one class or all."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in found if kind in (None, text.get("class"))]


def test_every_number_is_that_of_the_token_log(finished, tmp_path, capsys):
    main([str(finished[0]), "--step", "2", "--response", "3", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / n) for n in ("models.svg", "models.zh-CN.svg")]
    rows = [json.loads(line) for line in (finished[0] / "tokens.jsonl").read_text().splitlines()]
    row = [row for row in rows if row["step"] == 2][2]
    at = [i for i in shown_at(len(row["tokens"])) if i is not None]
    assert (at[0], at[-1]) == (0, len(row["tokens"]) - 1)
    wanted = [f"{math.exp(row['old_logprob'][i]):.3f}" for i in at]
    wanted += [f"{row['value'][i]:+.3f}" for i in at]
    wanted += [f"{math.exp(row['ref_logprob'][i]):.3f}" for i in at] + [f"{row['score']:+.3f}"]
    wanted += [f"{row[name][i]:+.3f}" for name in ("kl", "reward", "advantage") for i in at]
    for name in ("models.svg", "models.zh-CN.svg"):
        assert texts(tmp_path / name, "number") == [re.sub(r"-(0\.000)", r"+\1", number) for number in wanted]
    beta = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()][1]["kl/coef"]
    assert ENGLISH["reward"].format(beta=beta) in texts(tmp_path / "models.svg")
    with pytest.raises(SystemExit, match="not in the token log"):
        main([str(finished[0]), "--step", "99"])


def test_both_languages_have_the_same_words_to_fill():
    fields = [{key: re.findall(r"\{(\w+)", text) for key, text in words.items()} for words in (ENGLISH, CHINESE)]
    assert {key: sorted(names) for key, names in fields[0].items()} == {k: sorted(n) for k, n in fields[1].items()}


def test_the_figures_of_the_manual_have_the_same_numbers_and_all_of_them_inside():
    figures = [DOCS / "models.svg", DOCS / "models.zh-CN.svg"]
    numbers = [texts(figure, "number") for figure in figures]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) > 30
    assert FIRST + COLUMN * (len(shown_at(100)) - 1) + COLUMN / 2 <= WIDTH
    assert ENGLISH["value head"] in texts(figures[0])
    assert CHINESE["value head"] in texts(figures[1])
