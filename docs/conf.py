"""Settings of the manual for Sphinx: MyST Markdown, the furo theme, and docstrings of the code as they are written.

Build it with `sphinx-build -W -b html docs docs/_build`. The docstrings are plain text, not reStructuredText, so they
are escaped before Sphinx reads them: an asterisk in a formula stays an asterisk. Formulas become MathML, which browsers
draw by themselves: the pages load nothing from elsewhere and need no network.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert

import minirlhf

project = "minirlhf"
copyright = "The minirlhf authors, Apache-2.0"
author = "The minirlhf authors"
release = version = minirlhf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"minirlhf {release}"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
smartquotes = False  # "..." and quotes in formulas and code stay as they are typed
pygments_style = "friendly"
pygments_dark_style = "monokai"

INDENTED = re.compile(r"^ {2,}\S")
SPECIAL = re.compile(r"([*|_\\])")


def escape_docstring(app, what, name, obj, options, lines):
    """Turn a plain-text docstring into reStructuredText in place: indented blocks are literal, `x` is code."""
    escaped, literal = [], False
    for index, line in enumerate(lines):
        blank_before = index == 0 or not lines[index - 1].strip()
        if INDENTED.match(line) and (literal or blank_before):
            if not literal:
                escaped += ["::", ""]
            literal = True
        elif line.strip():
            if literal and escaped[-1].strip():
                escaped.append("")
            literal = False
        if literal or not line.strip():
            escaped.append(line)
            continue
        parts = line.split("`")
        parts[0::2] = [SPECIAL.sub(r"\\\1", text) for text in parts[0::2]]
        escaped.append("``".join(parts))
    lines[:] = [*escaped, ""]


def inline_formula(translator, node):
    """Write an inline formula as MathML."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_formula(translator, node):
    """Write a displayed formula as MathML that scrolls where it is wider than the page."""
    translator.body.append(f'<div class="math-block">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Register the conversion of docstrings and of formulas."""
    app.connect("autodoc-process-docstring", escape_docstring)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
