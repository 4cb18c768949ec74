"""Options that a component needs before it can be checked: build it, and say which ones are missing.

A component may need an option without saying so: its default is empty (None, "", []) and the component refuses to work
with it. That is a call with too little in it, not a faulty plugin, so it is reported as a UsageError.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from minirlhf.components.component import REQUIRED, Built, Component, Option
from minirlhf.errors import ConfigError, UsageError, UserError

EXAMPLES = {"str": '"..."', "list[str]": '["..."]', "int": "N", "float": "N"}  # annotation -> a value to fill in


def prepare(component: Component, options: Mapping[str, Any]) -> Built:
    """Build a component for `check`, with these options, on the CPU.

    Raises UsageError for an option that must be given, and whatever `Component.build` raises.
    """
    required = [o for o in component.options.values() if o.default is REQUIRED and o.name not in options]
    if required:
        raise options_needed(component, required)
    try:
        return component.build(options, device="cpu")
    except UserError as fault:
        empty = [] if isinstance(fault, ConfigError) else empty_options(component, options)
        if empty and (isinstance(fault, UsageError) or isinstance(fault.__cause__, ValueError)):
            raise options_needed(component, empty, fault) from fault
        raise


def empty_options(component: Component, options: Mapping[str, Any]) -> list[Option]:
    """List the options that are not in `options` and whose default is empty: None, "", [], () or {}."""
    unset = [o for o in component.options.values() if o.name not in options]
    return [
        o for o in unset if o.default is None or (isinstance(o.default, str | list | tuple | dict) and not o.default)
    ]


def options_needed(component: Component, missing: Sequence[Option], fault: UserError | None = None) -> UsageError:
    """UsageError that names the missing options and the --set that gives them; `fault` adds the component's words."""
    cause = fault and (fault.__cause__ or fault)
    names = " and ".join(o.name for o in missing)
    values = [(o.name, EXAMPLES.get(inspect.formatannotation(o.annotation), "...")) for o in missing]
    settings = " ".join(f"--set '{name}={value}'" for name, value in values)
    what = f"{component.title} needs {names} to be given" + (f" ({cause})" if cause else "")
    return UsageError(what, component.where, f"give {settings}")
