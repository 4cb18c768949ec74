"""The list of mutants that are no faults: it is about the code as it is, and each has a reason."""

import re
from pathlib import Path

import pytest

from tests.mutation.survivors import FILE, Survivors, named

ROOT = Path(__file__).parents[2]


def test_every_explained_mutant_is_of_a_line_that_is_there():
    found = Survivors(FILE.read_text(encoding="utf-8"))
    for this in found.known:
        place, old, new = this.split("\n")
        file, function = place.split(" ")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"def {function.rpartition('.')[2]}\(", text), place
        assert old[2:] in " ".join(line.strip() for line in text.splitlines()), this
        assert old[2:] != new[2:]
        assert found.reasons[this], f"{this} has no reason"


def test_an_entry_explains_one_mutant_and_a_rule_any_that_differ_in_nothing_else():
    text = "= because\nminirlhf/a.py f\n- x = 1\n+ x = 2\n= a rule\n~ , (strict=\\w+)?(?=\\))\n"
    one, other = (named("minirlhf/a.py f", "x = 1", new) for new in ("x = 2", "x = 3"))
    found = Survivors(text)
    assert [found.explains(this) for this in (one, one, other)] == [True, False, False]
    old, same, not_same = "zip(b, c, strict=True)", ("zip(b, c, strict=None)", "zip(b, c, )"), "zip(b, strict=True)"
    assert [found.explains(named("minirlhf/a.py f", old, new)) for new in (*same, not_same)] == [True, True, False]
    with pytest.raises(ValueError, match=r"survivors\.txt:1 is no line"):
        Survivors("x = 1")
