"""A page: one HTML file with its style, scripts and data inside, rendered from a template.

Text of models and corpora cannot run, load or send anything. It cannot become markup: jinja2 escapes every text, and
the data are JSON without a `<`. If it did, the content-security policy would stop it: only the style and the scripts
whose hashes it names are allowed. uPlot (MIT, uPlot.LICENSE) draws the curves; its files are checked by their hashes.

Not here: the content of a page (of_run.py, of_compare.py).
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

UPLOT = {  # file of uPlot 1.6.32 -> SHA-256 as published
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = ("uPlot.iife.min.js", "page.js")


@cache
def part(name: str) -> str:
    """Text of a file of this folder; RuntimeError if a file of uPlot is not the published one."""
    content = (resources.files("minirlhf.report") / name).read_bytes()
    if name in UPLOT and hashlib.sha256(content).hexdigest() != UPLOT[name]:
        raise RuntimeError(f"{name} is not the file of uPlot that it was")
    return content.decode("utf-8")


def render(template: str, script: str, data: Any, **shown: Any) -> str:
    """Text of a page: `template` filled with the values `shown`; `script` draws `data` (both are files of this folder).

    Lone surrogates, which UTF-8 cannot encode, become question marks.
    """
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

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
    """Content-security policy that allows this style and these scripts, by their SHA-256, and nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ["default-src 'none'", f"style-src {source(style)}", f"script-src {source(code)}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


@cache
def environment() -> "Environment":
    """Template environment: every value is escaped, a missing one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("minirlhf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number
    return templates


def number(value: Any, form: str = ".3f") -> str:
    """Number in this format; - for anything that is not a finite number."""
    finite = type(value) in (int, float) and abs(value) < 1e300
    return format(value, form) if finite else "-"
