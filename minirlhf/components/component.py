"""Component: one function or class of a plugin. Built: the same with its options fixed, ready to be called by name.

A component's ordinary parameters are inputs, bound by their names from INPUTS; its keyword-only parameters with a
default are options. Not here: reading a signature (signature.py), checks of results (checks.py), whose fault an
exception is (guard.py), finding and loading plugins (registry.py). torch is imported when a component is called.
"""

import contextlib
import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minirlhf import PROJECT
from minirlhf.components.checks import DeferredChecks, check_gradient, check_loss, check_tensor
from minirlhf.components.guard import definition_place, is_module, isolated, naming, version_of
from minirlhf.errors import ConfigError, PluginError, UserError, nearest

KINDS = ("reward", "kl", "advantage", "loss", "observer")
NOUNS = {
    "reward": "reward",
    "kl": "KL estimator",
    "advantage": "advantage function",
    "loss": "policy loss",
    "observer": "observer",
}
# Inputs that a component of a kind may name. Names are only ever added; an option of that name wins over the input.
INPUTS: dict[str, tuple[str, ...]] = {
    "reward": (
        *("prompts", "completions", "prompt_ids", "completion_ids"),
        *("rollout", "trainer_state", "log_metric", "log_extra"),
    ),
    "kl": ("logprobs", "old_logprobs", "ref_logprobs", "log_dist", "ref_log_dist", "mask"),
    "advantage": (
        *("rewards", "values", "mask", "scores", "greedy_scores", "group"),
        *("logprobs", "ref_logprobs", "kl", "terminated", "bootstrap_values"),
    ),
    "loss": ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "mask", "beta"),
    "observer": (),
}
OBSERVER_METHODS = ("start", "step", "finish")
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """Setting of a component: its evaluated annotation (Any without one) and its default (REQUIRED without one)."""

    name: str
    annotation: Any
    default: Any

    def __str__(self) -> str:
        kind = "" if self.annotation is Any else f": {inspect.formatannotation(self.annotation)}"
        return f"{self.name}{kind}" + ("" if self.default is REQUIRED else f" = {self.default!r}")


@dataclass(frozen=True)
class Component:
    """Named function or class of a plugin, as its signature describes it.

    owner: name of the plugin; path: its file or module. inputs: names from INPUTS[kind] that it takes; columns: columns
    of the prompt file that it needs (rewards only); defaults: parameters that keep their own default unless the prompt
    file has a column of that name; takes_columns: it has **kwargs and gets all remaining columns.
    """

    kind: str
    name: str
    owner: str
    path: str
    fn: Callable[..., Any]
    inputs: tuple[str, ...]
    options: dict[str, Option]
    columns: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    takes_columns: bool = False

    @property
    def title(self) -> str:
        """Name in messages: kind, name and plugin."""
        return f"{NOUNS[self.kind]} {self.name!r} of plugin {self.owner!r}"

    @property
    def where(self) -> str:
        """FILE:LINE of its definition, as far as known."""
        return definition_place(self.fn, self.path)

    @property
    def doc(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    def option_faults(self, values: Mapping[str, Any]) -> list[str]:
        """Faults of these options, one line each, beginning with the option's name."""
        return self._checked(values)[1]

    def build(self, values: Mapping[str, Any] | None = None, *, device: Any = None) -> "Built":
        """Fix the options and construct a class, once. An nn.Module is moved to `device`, put in eval mode and frozen.

        Raises ConfigError with all faults of the options, PluginError if the constructor raises.
        """
        options, faults = self._checked(values or {})
        if faults:
            raise ConfigError([f"{self.title}: {fault}" for fault in faults])
        if not inspect.isclass(self.fn):
            return Built(self, options)
        try:
            with isolated(), naming(self.title, self.where, self.path, code=self.fn):
                state: Any = self.fn(**options)
                if is_module(state):
                    state = state.to(device).eval().requires_grad_(False)
        except PluginError as fault:
            if self.owner == PROJECT and isinstance(fault.__cause__, UserError):
                raise fault.__cause__ from None  # a built-in: the fault is the user's, and its message says what to do
            raise
        return Built(self, options, state)

    def _checked(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Convert options to their annotated types (int to float, list to tuple); return (options, faults)."""
        converted, faults = {}, []
        for name, value in values.items():
            if name not in self.options:
                faults.append(f"{name} = {value!r}: {self._unknown_option(name)}")
                continue
            try:
                converted[name] = _convert(self, self.options[name], value)
            except (ValueError, TypeError) as fault:
                faults.append(f"{name} = {value!r}: {fault}")
        missing = [o.name for o in self.options.values() if o.default is REQUIRED and o.name not in values]
        faults += [f"{name}: {self.title} needs this option" for name in missing]
        return converted, faults

    def _unknown_option(self, name: str) -> str:
        if name in (*self.inputs, *self.columns, *self.defaults):
            return f"a parameter of {self.title}, but no option: options are keyword-only and have a default"
        known = f"it has {', '.join(self.options)}" if self.options else "it has none"
        return f"no option of {self.title}{nearest(name, self.options) or f' ({known})'}"


@dataclass(frozen=True)
class Built:
    """Component with its options fixed, ready to be called.

    options: as set, without the defaults; a class has got them already. state: the object, if the component is a class.
    label: name of a reward in this run.
    """

    component: Component
    options: dict[str, Any]
    state: Any = None
    label: str = ""

    @property
    def is_module(self) -> bool:
        return is_module(self.state)

    @property
    def stateful(self) -> bool:
        """True if it is saved in checkpoints: it has state_dict and load_state_dict. A module is frozen and is not."""
        return not self.is_module and all(
            callable(getattr(self.state, method, None)) for method in ("state_dict", "load_state_dict")
        )

    @property
    def title(self) -> str:
        """Name in messages: kind, name, plugin and label."""
        label = f" (label {self.label!r})" if self.label else ""
        return f"{self.component.title}{label}"

    def names(self, name: str) -> bool:
        """True if it takes this input or column."""
        c = self.component
        if name in c.options:
            return False
        return c.takes_columns or name in c.inputs or name in c.columns or name in c.defaults

    def option(self, name: str, otherwise: Any) -> Any:
        """Value of an option: as set, or its default; `otherwise` if the component has no such option."""
        option = self.component.options.get(name)
        return self.options.get(name, option.default) if option else otherwise

    def __call__(self, available: Mapping[str, Any], later: DeferredChecks | None = None) -> Any:
        """Pick its inputs by name, call it, and return its result, checked (`check_tensor`, `check_loss`).

        A KL estimator or an advantage function gives a tensor (B,R), a policy loss (tensor, metrics); the result of a
        reward is returned as it is, because it may still have to be awaited. later: collects checks of numbers that
        would wait for the device. Raises PluginError for whatever the component raises (but KeyboardInterrupt), for a
        result that breaks the contract, an input changed in place, or a lost gradient; DivergedError if an input was
        not finite already.
        """
        c = self.component
        inputs = {name: value for name, value in available.items() if self.names(name)}
        versions = {name: version_of(value) for name, value in inputs.items()}
        with isolated(), self.guarded():
            result = self.state(**inputs) if inspect.isclass(c.fn) else c.fn(**inputs, **self.options)
        for name, version in versions.items():
            if version_of(inputs[name]) != version:
                raise self.error(f"changed its input {name} in place", f"work on {name}.clone()")
        if c.kind in ("kl", "loss"):
            check_gradient(self, inputs.values(), result)
        if c.kind == "loss":
            return check_loss(self, result, available["mask"], inputs, later)
        if c.kind in ("kl", "advantage"):
            checked = check_tensor(self, result, available["mask"], inputs, later)
            return checked.detach() if c.kind == "advantage" else checked
        return result

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call a method of a class component; PluginError for whatever it raises (but KeyboardInterrupt)."""
        with isolated(), self.guarded():
            return getattr(self.state, method)(*arguments)

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Context in which every exception becomes a PluginError that names this component."""
        c = self.component
        return naming(self.title, c.where, c.path, code=c.fn)

    def error(self, what: str, todo: str) -> PluginError:
        """PluginError of this component, with plugin, file and line."""
        return PluginError(f"{self.title} {what}", self.component.where, todo)


def _convert(component: Component, option: Option, value: Any) -> Any:
    """Convert a config value to an option's type, strictly: "0.2" is no float, a bool no int, but an int is a float.

    Raises ValueError (TypeError) with the reason, PluginError for an annotation that cannot be checked.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    # Through JSON, where being strict still lets an array be a tuple.
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("must be finite") from None
    if option.annotation is Any:
        return copy.deepcopy(value)
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    try:
        return TypeAdapter(option.annotation, config=strict).validate_json(text)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        at = f" at [{']['.join(str(part) for part in first['loc'])}]" if first["loc"] else ""
        expected = inspect.formatannotation(option.annotation)
        raise ValueError(f"expected {expected}, {first['msg'][0].lower()}{first['msg'][1:]}{at}") from None
    except (PydanticUserError, TypeError, NameError):
        raise PluginError(
            f"{component.title} has an option {option.name!r} whose annotation cannot be checked"
            f" ({inspect.formatannotation(option.annotation)})",
            component.where,
            "use bool, int, float, str, Literal, or lists, tuples and unions of them",
        ) from None
