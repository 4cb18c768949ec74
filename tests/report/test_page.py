"""A page is one file that nothing can get into: policy, hashes, escapes."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from minirlhf.report import page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028 & \" ' <!-- {{ 7 * 7 }}"


class Read(HTMLParser):
    """Every element with its attributes, and the text inside styles, scripts and the rest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside, self.code, self.text = [], "", {"style": [], "script": [], "data": []}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = "data" if dict(attributes).get("type") == "application/json" else tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.code.get(self.inside, self.text).append(data)


def rendered(data=None, **shown):
    values = {"title": "t", "directory": "d", "config": "c", "chosen": [], "facts": [], "progress": (1, 1), "cards": []}
    values |= {"best_of_n": False, "prompts": 1, "sides": [], "checks": [], "alarms": [], "beside": [], "logged": 0}
    values |= {"objective": [], "objective_about": "", "beaten": [], "true_score": []}
    values |= {"kept": 0, "comparable": True, "few": 32, "rewards": "r"}
    return page.render("run.html.j2", "run.js", data, **(values | shown))


def test_the_policy_allows_these_scripts_and_this_style_and_nothing_else():
    read = Read(rendered([1]))
    (policy,) = (a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert set(rules) == {"style-src", "script-src"}
    for tag in ("style", "script"):
        ((content,),) = ([*read.code[tag]],) if len(read.code[tag]) == 1 else [["".join(read.code[tag])]]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_nothing_is_loaded_and_no_handler_or_style_stands_in_an_attribute():
    for tag, attributes in Read(rendered([1])).elements:
        assert not {"src", "style", "action"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)


def test_what_anybody_wrote_stays_text():
    row = {"prompt": HOSTILE, "reference": HOSTILE, "policy": HOSTILE, "reference_score": 0.5, "policy_score": None}
    text = rendered(
        {"text": HOSTILE}, title=HOSTILE, directory=HOSTILE, config=HOSTILE, beside=[row], alarms=[(1, HOSTILE)],
        facts=[(HOSTILE, HOSTILE)], chosen=[(HOSTILE, HOSTILE)], cards=[(HOSTILE, HOSTILE)],
    )  # fmt: skip
    read = Read(text)
    assert "img" not in {tag for tag, _ in read.elements}
    assert len([1 for tag, _ in read.elements if tag == "script"]) == 2
    assert json.loads("".join(read.code["data"])) == {"text": HOSTILE}
    assert read.text.count(HOSTILE) >= 10


def test_half_a_surrogate_pair_becomes_something_that_a_file_can_hold():
    rendered({"text": "\ud800"}, title="\ud800").encode("utf-8")


def test_a_number_that_is_none_is_refused_in_the_data():
    with pytest.raises(ValueError, match="not JSON compliant"):
        rendered([float("nan")])


def test_uplot_is_the_file_that_was_published(monkeypatch):
    assert "uPlot/blob" not in page.part("uPlot.min.css")
    assert re.match(r"/\*! https://github.com/leeoniya/uPlot \(v1\.6\.32\) \*/", page.part("uPlot.iife.min.js"))
    assert "Permission is hereby granted" in page.part("uPlot.LICENSE")
    page.part.cache_clear()
    monkeypatch.setitem(page.UPLOT, "uPlot.min.css", "0" * 64)
    with pytest.raises(RuntimeError, match=r"uPlot\.min\.css"):
        page.part("uPlot.min.css")
    page.part.cache_clear()


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (0.25, ".0%", "25%"), (1, "+.2f", "+1.00"), (None, ".3f", "-"), (float("nan"), ".3f", "-"),
        ("x", ".3f", "-"), (True, ".3f", "-"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, form, shown):
    assert page.number(value, form) == shown
