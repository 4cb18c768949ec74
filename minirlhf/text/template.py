"""Chat templates: a tokenizer's own Jinja template, rendered in a sandbox.

A template comes with somebody else's model, so it is a program of a stranger. It sees the messages and the names of the
special tokens, and may neither reach out of Jinja's sandbox nor run on for long. What transformers offers to templates
is there: raise_exception, strftime_now of one fixed day, tojson without escapes, break and continue, {% generation %}.
Not here: ids of what was rendered (foreign.py).
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from minirlhf.errors import InputError
from minirlhf.text.tokenizer import Conversation

LONGEST: Final = 1 << 23  # characters of a rendering, and of any text or list that a template computes
MOST_TURNS: Final = 1_000_000  # turns of all loops in one rendering, and numbers of its ranges
MOST_BITS: Final = 1 << 16  # of a power
MOST_SPACES: Final = 10_000
SECONDS: Final = 20.0
TODAY: Final = datetime(2024, 7, 26)  # a run that is resumed on another day must have the same prompts
_COUNTED: Final = "counted turns"  # no name that a template can write
_HALF: Final = re.compile("[\ud800-\udfff]")
_WIDE: Final = re.compile(r"\d{4,}|%[^a-zA-Z%]*\*|:[^}]*\{")


class ChatTemplate:
    """Template of conversations; names: variables such as bos_token; where: its file.

    It is compiled when it is first used, because a run that does not use it need not care what it is.
    """

    def __init__(self, source: str, names: Mapping[str, str], where: str) -> None:
        self.source, self.where, self._names = source, where, dict(names)
        self._box = _Box()

    def check(self) -> None:
        """Compile the template if it was not. Errors: InputError if it is no Jinja, or no text."""
        _ = self._compiled

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if _HALF.search(self.source):
            todo = "convert the file, or set corpus.template = 'none'"
            raise InputError("the chat template is not UTF-8", self.where, todo)
        try:
            return self._box.from_string(self.source)
        except Exception as fault:  # whatever the compiler says of a stranger's program
            raise self._refused(fault) from fault

    def render(self, messages: Conversation, *, answering: bool) -> str:
        """Text of a conversation; answering: followed by what the assistant's next message begins with.

        Errors: InputError for a template that raises, leaves its sandbox or does not end.
        """
        self.check()
        self._box.begin()
        pieces, length = list[str](), 0
        given = [dict(message) for message in messages]
        try:
            for piece in self._compiled.generate(
                messages=given, add_generation_prompt=answering, tools=None, documents=None, **self._names
            ):
                pieces.append(piece)
                length += len(piece)
                self._box.check_time()
                if length > LONGEST:
                    raise SecurityError("it writes on and on")
        except Exception as fault:
            raise self._refused(fault) from fault
        return "".join(pieces)

    def _refused(self, fault: Exception) -> InputError:
        what = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
        todo = "mend the conversation or the template, or set corpus.template = 'none'"
        return InputError(f"the chat template fails ({what[:200]})", self.where, todo)


class _Box(ImmutableSandboxedEnvironment):
    """Sandbox that also bounds what a template computes."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.begin()
        self.filters |= {"tojson": _to_json, "format": _formatted, _COUNTED: self._counted}
        self.filters |= {name: _bounded(self.filters[name]) for name in ("center", "indent", "slice", "batch")}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "range": self._range}

    def begin(self) -> None:
        """Begin to count the turns and the time of a rendering."""
        self._turns, self._until = 0, time.monotonic() + SECONDS

    def check_time(self) -> None:
        """SecurityError if the rendering has taken too long."""
        if time.monotonic() > self._until:
            raise SecurityError(f"it takes more than {SECONDS:.0f} s")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse with `a ~ b` read as a sum of texts, and with loops counted, so that the sandbox sees them."""
        parsed: nodes.Template = _Watched().visit(super()._parse(source, name, filename))
        return parsed

    @jinja2.pass_context  # which keeps the library from applying it once and for all to a list in the template
    def _counted(self, _context: Any, values: Iterable[Any]) -> "_Turns":
        """The same values for a loop over them, each of which is a turn."""
        return _Turns(values, self)

    def count(self, turns: int) -> None:
        """Count turns of loops; SecurityError if there are too many, or they take too long."""
        self._turns += turns
        self.check_time()
        if self._turns > MOST_TURNS:
            raise SecurityError("its loops have too many turns")

    def _range(self, *bounds: int) -> range:
        found = range(*bounds)
        self.count(len(found))
        return found

    def call(self, context: Any, called: Any, *values: Any, **named: Any) -> Any:
        """Call what a template calls, if there is time left: a macro may call itself."""
        self.check_time()
        return super().call(context, called, *values, **named)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Withhold the methods of a text that fill it up."""
        if isinstance(obj, str) and attr in ("ljust", "rjust", "center", "zfill", "expandtabs"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` of a text, None for any other method."""
        safe = super().wrap_str_format(value)
        if safe is not None:
            check_widths(str(value.__self__))
        return safe

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse a result that would fill the memory."""
        if operator == "**" and not (isinstance(left, int | float) and isinstance(right, int) and _small(left, right)):
            raise SecurityError("it computes a power")
        if operator == "*":
            size = max([len(x) for x in (left, right) if isinstance(x, str | list | tuple)], default=0)
            times = max([abs(x) for x in (left, right) if isinstance(x, int)], default=0)
            if size * times > LONGEST or (not size and times > 1 << 64):
                raise SecurityError("it repeats a text too often")
        if operator == "%" and isinstance(left, str):
            check_widths(left)
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, str | list | tuple) and len(found) > LONGEST:
            raise SecurityError("it makes too long a text")
        return found


class _Turns:
    """Values of a loop; each that is taken is a turn. Has a length where they have one (TypeError), as loops ask."""

    def __init__(self, values: Iterable[Any], box: _Box) -> None:
        self._values, self._box = values, box

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._box.count(1)
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]


class _Watched(NodeTransformer):
    """Rewrites concatenations and loops of an abstract syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """`for x in values` as `for x in values|counted`."""
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """`a ~ b ~ c` as string(a) + string(b) + string(c)."""
        self.generic_visit(node)
        texts = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        found: nodes.Expr = texts[0]
        for text in texts[1:]:
            found = nodes.Add(found, text, lineno=node.lineno)
        return found


class _Generation(Extension):
    """Tag {% generation %} ... {% endgeneration %}, which marks what the assistant wrote; here only its content."""

    tags = {"generation"}  # noqa: RUF012 (the library's form)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Take the content in place of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _small(base: float, exponent: int) -> bool:
    """True if a power has at most MOST_BITS bits."""
    return not isinstance(base, int) or base.bit_length() * abs(exponent) <= MOST_BITS


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return TODAY.strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """JSON with letters as they are and without HTML's escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, but for numbers that would make a long text."""

    def called(*values: Any, **named: Any) -> Any:
        if any(isinstance(value, int) and value > MOST_SPACES for value in (*values, *named.values())):
            raise SecurityError("it makes too many spaces")
        return function(*values, **named)

    return called


def _formatted(text: Any, *values: Any, **named: Any) -> str:
    """Jinja's `format`: text % values."""
    check_widths(str(text))
    return str(text) % (named or values)


def check_widths(text: str) -> None:
    """SecurityError for a format that asks for a width of four digits, or for one that is a value itself."""
    if _WIDE.search(text):
        raise SecurityError("it formats a text to a large width")
