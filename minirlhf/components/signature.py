"""Reading a component's signature: its inputs, options and columns, bound by parameter names.

Order of binding: a keyword-only parameter with a default is an option; a name in INPUTS is an input; for a reward any
other name is a column of the prompt file; else the parameter keeps its own default, or the component is refused.
"""

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from minirlhf.components.component import INPUTS, KINDS, NOUNS, OBSERVER_METHODS, Component, Option
from minirlhf.components.guard import definition_place, describe_value, is_module_class, own_method, plain_function
from minirlhf.errors import PluginError, nearest


def read_component(kind: str, name: str, owner: str, path: str, obj: Any) -> Component:
    """Read the signature of a function or class. Raises PluginError if a parameter cannot be bound."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    reader = _Reader(kind, name, owner, path, obj)
    return reader.observer() if kind == "observer" else reader.component()


@dataclass(frozen=True)
class _Reader:
    """Reader of one signature; it holds the names that every refusal mentions."""

    kind: str
    name: str
    owner: str
    path: str
    obj: Any

    def component(self) -> Component:
        if inspect.isclass(self.obj):
            method = "forward" if is_module_class(self.obj) else "__call__"
            call = own_method(self.obj, method)
            if call is None:
                raise self.refuse(f"is a class without {method}", f"define {method}(self, ...)")
            return self.bind(self.signature(call)[1:], self.constructor_options())  # without self
        if not callable(self.obj):
            raise self.refuse(f"is not a function but {describe_value(self.obj)}", "register a function or a class")
        parameters = self.signature(self.obj)
        options = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty]
        return self.bind([p for p in parameters if p not in options], self.options(options, self.obj))

    def observer(self) -> Component:
        if not inspect.isclass(self.obj):
            raise self.refuse("is not a class", "an observer is a class with start, step and finish")
        missing = [m for m in OBSERVER_METHODS if not callable(getattr(self.obj, m, None))]
        if missing:
            raise self.refuse(f"has no {', '.join(missing)}", "an observer has start, step and finish")
        options = self.constructor_options()
        return Component(self.kind, self.name, self.owner, self.path, self.obj, inputs=(), options=options)

    def bind(self, parameters: list[inspect.Parameter], options: dict[str, Option]) -> Component:
        """Bind every parameter to an input, a column or its own default, or refuse it."""
        known = INPUTS[self.kind]
        inputs, columns, defaults, takes_columns = [], [], [], False
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
                star = "*" if p.kind is p.VAR_POSITIONAL else ""
                raise self.refuse(
                    f"takes {star}{p.name} by position",
                    "inputs are bound by name: wrap it in a def that names them",
                )
            if p.kind is p.VAR_KEYWORD:
                if self.kind != "reward":
                    raise self.refuse(f"takes **{p.name}", "only rewards may: name the inputs")
                takes_columns = True
            elif p.name in known:
                inputs.append(p.name)
            elif p.default is not p.empty:
                defaults.append(p.name)
            elif self.kind == "reward":
                columns.append(p.name)  # checked against the prompt file when that has been read
            else:
                raise self.refuse(
                    f"takes an unknown input {p.name!r}{nearest(p.name, known)}",
                    f"inputs are {', '.join(known)}; an option is keyword-only and has a default",
                )
        return Component(
            self.kind, self.name, self.owner, self.path, self.obj, tuple(inputs), options,
            tuple(columns), tuple(defaults), takes_columns,
        )  # fmt: skip

    def constructor_options(self) -> dict[str, Option]:
        """Options of a class: keyword-only parameters of __init__. Others need a default: nothing could set them."""
        parameters = self.signature(self.obj)
        for p in parameters:
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty:
                raise self.refuse(
                    f"cannot be built: __init__ needs {p.name!r}",
                    "make it keyword-only (after a *): it is an option",
                )
        return self.options([p for p in parameters if p.kind is p.KEYWORD_ONLY], self.obj)

    def options(self, parameters: list[inspect.Parameter], obj: Any) -> dict[str, Option]:
        return {p.name: Option(p.name, self.annotation(p, obj), p.default) for p in parameters}

    def signature(self, obj: Any) -> list[inspect.Parameter]:
        try:
            return list(_signature(obj).parameters.values())
        except (ValueError, TypeError):
            raise self.refuse("has no signature that can be read", "wrap it in a def") from None

    def annotation(self, parameter: inspect.Parameter, obj: Any) -> Any:
        """Annotation of an option, evaluated. Those of inputs are not: they may name types that are not imported."""
        found = Any if parameter.annotation is parameter.empty else parameter.annotation
        source = own_method(obj, "__init__") if inspect.isclass(obj) else plain_function(obj)
        space = getattr(source, "__globals__", {})
        while isinstance(found, str):  # `from __future__ import annotations` makes every annotation a string
            try:
                found = eval(found, dict(space), dict(vars(obj)) if inspect.isclass(obj) else {})
            except Exception as fault:
                raise self.refuse(
                    f"has an option {parameter.name!r} with an annotation {found!r} that fails ({fault})",
                    "use a type that the plugin's file knows, such as float or list[str]",
                ) from None
        return found

    def refuse(self, what: str, todo: str) -> PluginError:
        title = f"{NOUNS[self.kind]} {self.name!r} of plugin {self.owner!r}"
        return PluginError(f"{title} {what}", definition_place(self.obj, self.path), todo)


def _signature(obj: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated when asked for: leave unknown names alone
        import annotationlib

        return inspect.signature(obj, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(obj)
