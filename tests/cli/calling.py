"""Command lines run in this process, and the form that every refusal must have."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from minirlhf.cli.main import main

WITH_EVENTS = (
    "run",
    "pretrain",
    "sft",
    "reward-model",
)  # commands whose --json prints what minirlhf/events.py describes


VALID = set[str]()  # forms of events that the schema allows


def form_of(value: Any) -> Any:
    """Names and types of an event, and what its `event` and `stage` say: all that the schema looks at."""
    if isinstance(value, dict):
        return {k: v if k in ("event", "stage", "reused") else form_of(v) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return sorted({str(form_of(item)) for item in value})
    return type(value).__name__


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    command: str
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of stdout as JSON; of a command that tells events each one is as the printed schema says (held
        against it once for each form of an event: a validation takes two milliseconds, and there are thousands)."""
        found = [json.loads(line) for line in self.out.splitlines()]
        for event in found if self.command in WITH_EVENTS else ():
            form = str(form_of(event))
            if form not in VALID:
                event_schema().validate(event)
                VALID.add(form)
        return found

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that refuse something."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def call(*arguments: object, stdin: bytes = b"") -> Result:
    """`minirlhf ARGUMENTS`, with this standard input."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        return Result(str(arguments[0]), int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.stdin = before


@cache
def event_schema() -> Draft202012Validator:
    """What `config schema --events` prints."""
    schema = json.loads(done("config", "schema", "--events").out)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def done(*arguments: object, stdin: bytes = b"") -> Result:
    """A command that must succeed."""
    result = call(*arguments, stdin=stdin)
    assert result.code == 0, result.err
    return result


def refused(code: int, *arguments: object, said: tuple[str, ...] = (), lines: int = 1, stdin: bytes = b"") -> str:
    """A command that must be refused: this code, so many `error: ` lines at the end, no traceback, nothing printed."""
    result = call(*arguments, stdin=stdin)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert result.errors == result.err.splitlines()[-lines:]
    assert len(result.errors) == lines
    text = "\n".join(result.errors)
    for part in said:
        assert part in text, f"{part!r} is not in: {text}"
    return text
