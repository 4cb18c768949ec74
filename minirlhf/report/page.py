"""How a page is made: a template, its numbers, and a policy that lets nothing else in.

A page is one file: style, scripts and data stand inside it. Its content-security policy names the hashes of exactly
these scripts and this style, so that nothing which a model or a corpus wrote can run, load or send anything, even if it
found a way into the markup; and it finds none, since jinja2 escapes every text and the data are JSON without a `<`.
uPlot (MIT, uPlot.LICENSE) draws the curves; it is the file that its authors publish, held by its hash.
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

UPLOT = {  # SHA-256 of the files of uPlot 1.6.32 as they are published
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = ("uPlot.iife.min.js", "page.js")


@cache
def part(name: str) -> str:
    """A file of this folder; one of uPlot's is the one that its authors published (RuntimeError)."""
    content = (resources.files("minirlhf.report") / name).read_bytes()
    if name in UPLOT and hashlib.sha256(content).hexdigest() != UPLOT[name]:
        raise RuntimeError(f"{name} is not the file of uPlot that it was")
    return content.decode("utf-8")


def render(template: str, script: str, data: Any, **shown: Any) -> str:
    """The page: `template` with the values `shown`, `data` for the `script` that draws it (both files of this folder).

    A half of a surrogate pair, which no file can hold, becomes a question mark.
    """
    style, code = "\n".join(map(part, STYLES)), "\n".join(map(part, (*SCRIPTS, script)))
    page = environment().get_template(template)
    text = page.render(
        style=Markup(style),
        code=Markup(code),
        policy=policy(style, code),
        data=htmlsafe_json_dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")),
        **shown,
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def policy(style: str, code: str) -> str:
    """The content-security policy of a page with this style and these scripts, and nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ["default-src 'none'", f"style-src {source(style)}", f"script-src {source(code)}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


@cache
def environment() -> Environment:
    """Templates that escape every value, and refuse one that is missing."""
    found = Environment(
        loader=PackageLoader("minirlhf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    return found


def number(value: Any, form: str = ".3f") -> str:
    """A number for people; n/a for what is none."""
    fine = type(value) in (int, float) and abs(value) < 1e300
    return format(value, form) if fine else "n/a"
