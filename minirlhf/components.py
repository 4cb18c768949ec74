"""A component: one function or class of a plugin, read, checked, built and called. Parameter names bind.

Here are reading a signature, checking options, building, calling by name, and the checks of what comes
back. Every fault of a plugin becomes one PluginError that names plugin, component, file and line. Not here:
finding and loading plugins (registry.py), and adding rewards up (scoring.py). torch is not imported until a
tensor is checked.
"""

import contextlib
import copy
import difflib
import functools
import inspect
import json
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minirlhf.errors import ConfigError, DivergedError, PluginError, UserError
from minirlhf.signals import Terminated

if TYPE_CHECKING:
    from torch import Tensor

OWN = "minirlhf"  # the owner of what comes with the program
KINDS = ("reward", "kl", "advantage", "loss", "observer")
NOUNS = {
    "reward": "reward",
    "kl": "KL estimator",
    "advantage": "advantage function",
    "loss": "policy loss",
    "observer": "observer",
}
# What a component of a kind may name. Names are only ever added; an option wins over one of them.
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
LARGEST = 3.4028234663852886e38  # of float32: the loop's tensors must be able to hold a score

# A checked result of a reward for one completion: a score, one number a token, or None = does not apply.
RowScore = float | list[float] | None


# ---- what a component is -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A setting of a component: annotation evaluated (Any without one), default REQUIRED if it has none."""

    name: str
    annotation: Any
    default: Any

    def __str__(self) -> str:
        kind = "" if self.annotation is Any else f": {inspect.formatannotation(self.annotation)}"
        return f"{self.name}{kind}" + ("" if self.default is REQUIRED else f" = {self.default!r}")


@dataclass(frozen=True)
class Component:
    """One named function or class of a plugin, as its signature describes it.

    owner = the plugin's name, path = its file (or module). inputs: names of the kind's list that it takes;
    columns: columns of the prompt file that it needs (rewards only); defaults: parameters that keep their own
    default unless the prompt file has such a column; takes_columns: it has **kwargs and gets all the rest.
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
        """What messages call it."""
        return f"{NOUNS[self.kind]} {self.name!r} of plugin {self.owner!r}"

    @property
    def where(self) -> str:
        """FILE:LINE of its definition, as far as known."""
        return place(self.fn, self.path)

    @property
    def doc(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]

    def option_faults(self, values: Mapping[str, Any]) -> list[str]:
        """What is wrong with these options, one line a fault, each beginning with the option's name."""
        return self._checked(values)[1]

    def build(self, values: Mapping[str, Any] | None = None, *, device: Any = None) -> "Built":
        """Fix the options; construct a class (once); an nn.Module is moved to `device`, put in eval, frozen.

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
                if _is_module(state):
                    state = state.to(device).eval().requires_grad_(False)
        except PluginError as fault:
            if self.owner == OWN and isinstance(fault.__cause__, UserError):
                raise fault.__cause__ from None  # one of ours, and the user's to mend: it says what to do
            raise
        return Built(self, {}, state)

    def _checked(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Options as their annotations want them (an int for a float, a list for a tuple), and the faults."""
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
    """A component with its options fixed, ready to be called. label: what a reward is called in this run."""

    component: Component
    options: dict[str, Any]
    state: Any = None
    label: str = ""

    @property
    def is_module(self) -> bool:
        return _is_module(self.state)

    @property
    def stateful(self) -> bool:
        """Has state_dict and load_state_dict: checkpointed. An nn.Module is frozen: nothing to save."""
        return not self.is_module and all(
            callable(getattr(self.state, method, None)) for method in ("state_dict", "load_state_dict")
        )

    @property
    def title(self) -> str:
        label = f" (label {self.label!r})" if self.label else ""
        return f"{self.component.title}{label}"

    def names(self, name: str) -> bool:
        """Does it take this input (or column)?"""
        c = self.component
        if name in c.options:
            return False
        return c.takes_columns or name in c.inputs or name in c.columns or name in c.defaults

    def __call__(self, available: Mapping[str, Any]) -> Any:
        """Pick its inputs by name and call it.

        Raises PluginError for whatever it raises (but KeyboardInterrupt), if it changes a tensor in place,
        and, for a KL or a loss, if the result has lost its gradient.
        """
        c = self.component
        inputs = {name: value for name, value in available.items() if self.names(name)}
        versions = {name: _version(value) for name, value in inputs.items()}
        with isolated(), self.guarded():
            result = (self.state if inspect.isclass(c.fn) else c.fn)(**inputs, **self.options)
        for name, version in versions.items():
            if _version(inputs[name]) != version:
                raise self.error(f"changed its input {name} in place", f"work on {name}.clone()")
        if c.kind in ("kl", "loss"):
            self._check_gradient(inputs.values(), result)
        return result

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call a method of a class component; PluginError for whatever it raises (but KeyboardInterrupt)."""
        with isolated(), self.guarded():
            return getattr(self.state, method)(*arguments)

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """Inside it, whatever is raised becomes a PluginError that names this component."""
        c = self.component
        return naming(self.title, c.where, c.path, code=c.fn)

    def error(self, what: str, todo: str) -> PluginError:
        """A fault of this component, with plugin, file and line."""
        return PluginError(f"{self.title} {what}", self.component.where, todo)

    def _check_gradient(self, inputs: Iterable[Any], result: Any) -> None:
        """A detached result would train nothing, silently."""
        import torch

        value = result[0] if isinstance(result, tuple) and result else result
        if not torch.is_grad_enabled() or not isinstance(value, torch.Tensor) or value.requires_grad:
            return
        if any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
            raise self.error(
                "returned a tensor without a gradient (expected one that depends on logprobs or log_dist)",
                "do not use .detach(), .data, .item() or no_grad on the way from the input to the result",
            )


# ---- reading a signature -----------------------------------------------------------------------------------


def read_component(kind: str, name: str, owner: str, path: str, obj: Any) -> Component:
    """Read a signature: what it takes, what can be set. Raises PluginError for one that cannot be bound."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    reader = _Reader(kind, name, owner, path, obj)
    return reader.observer() if kind == "observer" else reader.component()


@dataclass(frozen=True)
class _Reader:
    """One reading; a class only so that every refusal can say whose signature it is."""

    kind: str
    name: str
    owner: str
    path: str
    obj: Any

    def component(self) -> Component:
        if inspect.isclass(self.obj):
            method = "forward" if _is_module_class(self.obj) else "__call__"
            call = _method(self.obj, method)
            if call is None:
                raise self.refuse(f"is a class without {method}", f"define {method}(self, ...)")
            return self.bind(self.signature(call)[1:], self.constructor_options())  # without self
        if not callable(self.obj):
            raise self.refuse(f"is not a function but {_show(self.obj)}", "register a function or a class")
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
        """Every parameter finds its place: an input, a column, its own default, or a refusal."""
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
                columns.append(p.name)  # held against the prompt file when that is known
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
        """Keyword-only parameters of __init__; another one without a default could never be given."""
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
        """Only options' annotations are evaluated, one by one: an input's may name what is not imported."""
        found = Any if parameter.annotation is parameter.empty else parameter.annotation
        source = _method(obj, "__init__") if inspect.isclass(obj) else _function(obj)
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
        return PluginError(f"{title} {what}", place(self.obj, self.path), todo)


def _signature(obj: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated when asked for: leave unknown names alone
        import annotationlib

        return inspect.signature(obj, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(obj)


def _convert(component: Component, option: Option, value: Any) -> Any:
    """A config value as the annotation wants it; strict: "0.2" is no float, a bool no int, an int is a float.

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


# ---- running a plugin's code -------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(title: str, where: str, path: str, code: Any = None) -> Iterator[None]:
    """Whatever the plugin raises (SystemExit and RecursionError too) becomes one PluginError that names it.

    The place is the last line of the plugin's own file on the way to the fault, else `where`.
    KeyboardInterrupt and Terminated are the user's and pass.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as fault:
        at = _raised_at(fault, {path, _filename(code)}) or where
        raise PluginError(f"{title} raised {_describe(fault)}", at, "fix the plugin, or run without it") from fault


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Prints go to stderr (stdout holds results); cwd, default dtype and grad mode are put back."""
    torch = sys.modules.get("torch")
    here = _cwd()
    mode = (torch.get_default_dtype(), torch.is_grad_enabled()) if torch else None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if here and _cwd() != here:
            os.chdir(here)
        if torch and mode and mode != (torch.get_default_dtype(), torch.is_grad_enabled()):
            torch.set_default_dtype(mode[0])
            torch.set_grad_enabled(mode[1])


def nearest(name: str, choices: Collection[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no choice is near."""
    found = difflib.get_close_matches(name, list(choices), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(x) for x in found)}?)" if found else ""


def _describe(fault: BaseException) -> str:
    """ValueError (the message): printable, of bounded length, whatever the plugin put there."""
    message = _printable(str, fault, 300)
    return f"{type(fault).__name__} ({message})" if message else type(fault).__name__


def _raised_at(fault: BaseException, files: set[str]) -> str:
    """FILE:LINE of the deepest frame inside these files, or of the line of a syntax error in one of them."""
    if isinstance(fault, SyntaxError) and fault.filename in files and fault.lineno:
        return f"{fault.filename}:{fault.lineno}"
    at = ""
    for frame, line in traceback.walk_tb(fault.__traceback__):
        if frame.f_code.co_filename in files:
            at = f"{frame.f_code.co_filename}:{line}"
    return at


def _function(obj: Any) -> Any:
    """The plain function behind a class, a partial, a decorated function or an object with __call__."""
    if inspect.isclass(obj):
        own = [_method(obj, name) for name in ("forward", "__call__", "step", "__init__")]
        return next((f for f in own if hasattr(f, "__code__")), obj)
    while isinstance(obj, functools.partial):
        obj = obj.func
    obj = inspect.unwrap(obj) if callable(obj) else obj
    return obj if hasattr(obj, "__globals__") else vars(type(obj)).get("__call__", obj)


def _method(cls: type, name: str) -> Any:
    """A method as the class or a base defines it; a plain getattr would find type.__call__ in every class."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _filename(obj: Any) -> str:
    code = getattr(_function(obj), "__code__", None)
    return code.co_filename if code else ""


def place(obj: Any, path: str) -> str:
    """FILE:LINE of a function's definition; `path` where that is not known."""
    code = getattr(_function(obj), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else path


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _is_module(obj: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.nn.Module)


def _is_module_class(obj: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and inspect.isclass(obj) and issubclass(obj, torch.nn.Module)


def _version(value: Any) -> int:
    """How often a tensor was changed in place; an inference tensor does not count, nor does anything else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.is_inference():
        return 0
    return int(value._version)


# ---- what comes back ---------------------------------------------------------------------------------------


Later = list[Callable[[], None]]  # checks that wait for a device: done when a loss turns out not to be finite


def check_tensor(
    built: Built,
    result: Any,
    mask: "Tensor",
    given: Mapping[str, Any] | None = None,
    later: Later | None = None,
) -> "Tensor":
    """The (B,R) tensor of a KL estimator, advantage function or policy loss, checked.

    Returns it with zeros where mask (B,R) is False, so that junk there (NaN included) has no effect;
    advantages are detached. Raises PluginError with the first bad index. `given` are the inputs of the
    call: if one of them was not finite already, the model diverged and the plugin is not to blame:
    DivergedError. With `later` the numbers are not looked at now, which would wait for the device: a check
    of them is put there.
    """
    import torch

    todo = "return a float tensor of the shape of the mask"
    expected = f"expected a float tensor of shape {tuple(mask.shape)}"
    if not isinstance(result, torch.Tensor):
        raise built.error(f"returned a wrong result ({expected}, got {_show(result)})", todo)
    if result.shape != mask.shape or not result.is_floating_point():
        got = f"{str(result.dtype).removeprefix('torch.')} of shape {tuple(result.shape)}"
        raise built.error(f"returned a wrong result ({expected}, got {got})", todo)
    if result.device != mask.device:
        raise built.error(f"returned a tensor on {result.device} (expected {mask.device})", "keep the inputs' device")
    kept = torch.where(mask, result, torch.zeros_like(result))
    if later is None:
        _check_finite(built, kept, mask, given or {})
    else:
        small = {
            n: v.detach() for n, v in (given or {}).items() if isinstance(v, torch.Tensor) and v.shape == mask.shape
        }
        later.append(functools.partial(_check_finite, built, kept.detach(), mask, small))
    return kept.detach() if built.component.kind == "advantage" else kept


def _check_finite(built: Built, kept: "Tensor", mask: "Tensor", given: Mapping[str, Any]) -> None:
    import torch

    if bool(kept.isfinite().all()):
        return
    for name, value in given.items():
        if built.names(name) and isinstance(value, torch.Tensor) and not _finite_on(value, mask):
            raise DivergedError(f"{name} is not finite", built.component.title, "lower the learning rate")
    row, t = (~kept.isfinite()).nonzero()[0].tolist()
    got = f"expected a finite number, got {kept[row, t].item()}"
    raise built.error(f"returned a wrong value at index ({row}, {t}) ({got})", "look at its divisions, exp and log")


def check_loss(
    built: Built,
    result: Any,
    mask: "Tensor",
    given: Mapping[str, Any] | None = None,
    later: Later | None = None,
) -> tuple["Tensor", dict[str, "Tensor"]]:
    """A policy loss: a (B,R) tensor, or (that, {metric: (B,R) or 0-d tensor or number}).

    Returns (the loss as check_tensor gives it, the metrics, detached). Raises as check_tensor does.
    """
    import torch

    values, logged = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    todo = "return the loss (B,R), or (loss, {name: (B,R) or 0-d tensor})"
    if not isinstance(logged, Mapping) or not all(isinstance(name, str) for name in logged):
        raise built.error(f"returned wrong metrics (expected a dict of tensors by name, got {_show(logged)})", todo)
    metrics = {}
    for name, value in logged.items():
        with built.guarded():
            tensor = torch.tensor(float(value), device=mask.device) if isinstance(value, numbers.Real) else value
        if not isinstance(tensor, torch.Tensor) or tensor.shape not in (mask.shape, torch.Size()):
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else _show(tensor)
            raise built.error(
                f"returned a wrong metric {name!r} (expected shape {tuple(mask.shape)} or (), got {got})",
                todo,
            )
        metrics[name] = tensor.detach()
    return check_tensor(built, values, mask, given, later), metrics


def check_scores(built: Built, result: Any, count: int, completion_ids: Sequence[Sequence[int]]) -> list[RowScore]:
    """What a reward returned for `count` completions: a float, None or a float a token for each.

    Accepted: a list or tuple, or anything with tolist() (tensors on any device, numpy arrays), of numbers
    that float32 can hold (floats, ints, bools, 0-d tensors), of None = does not apply, or of lists of
    numbers, one a token of completion_ids. Refused, with the first bad index: everything else, strings and
    NaN in particular.
    """
    todo = "return one float or None for each completion, or one float for each token of its completion_ids"
    expected = f"expected {count} values, one for each completion"
    with built.guarded():
        rows = _plain(result)
    if not isinstance(rows, list):
        hint = "; does the function end without a return?" if rows is None else ""
        raise built.error(f"returned a wrong result ({expected}, got {_show(rows)}{hint})", todo)
    if len(rows) != count:
        first = f"index {len(rows)} is missing" if len(rows) < count else f"index {count} is one too many"
        raise built.error(f"returned a wrong number of values ({expected}, got {len(rows)}: {first})", todo)
    checked: list[RowScore] = []
    for index, (row, ids) in enumerate(zip(rows, completion_ids, strict=True)):
        try:
            checked.append(_row_score(row, len(ids)))
        except ValueError as fault:
            raise built.error(f"returned a wrong value at index {index} ({fault})", todo) from None
    return checked


def finite_number(value: Any) -> float:
    """A finite number that float32 can hold, as a float: Python, numpy or a 0-d tensor. Raises ValueError."""
    plain = _plain(value)
    try:
        if isinstance(plain, numbers.Real) and abs(number := float(plain)) <= LARGEST:
            return number
    except (OverflowError, TypeError, ValueError):  # an int beyond floats, a number that is none
        pass
    raise ValueError(f"expected a finite number, got {_show(plain)}")


def _row_score(value: Any, tokens: int) -> RowScore:
    if value is None:
        return None
    if not isinstance(value, list):
        try:
            return finite_number(value)
        except ValueError:
            raise ValueError(f"expected a finite number or None, got {_show(value)}") from None
    if len(value) != tokens:
        raise ValueError(f"expected a number, or {tokens} numbers for its {tokens} tokens, got {len(value)} values")
    numbers_: list[float] = []
    for t, item in enumerate(value):
        try:
            numbers_.append(finite_number(item))
        except ValueError as fault:
            raise ValueError(f"token {t}: {fault}") from None
    return numbers_


def _plain(value: Any) -> Any:
    """Tensors, arrays, tuples and lists of them as plain lists; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _finite_on(value: "Tensor", mask: "Tensor") -> bool:
    """Finite where the mask is True, for (B,), (B,R), (B,R,V); -inf is a banned token in a distribution."""
    import torch

    if value.ndim == 1 or value.shape[: mask.ndim] != mask.shape:
        return bool(value.isfinite().all())
    if value.ndim == 3:
        return not bool((value[mask].isnan() | value[mask].isposinf()).any())
    return bool(torch.where(mask, value, torch.zeros_like(value)).isfinite().all())


def _show(value: Any) -> str:
    """'good' (str), nan (float), None: a value and its type, short."""
    if value is None:
        return "None"
    return f"{_printable(repr, value, 60)} ({type(value).__name__})"


def _printable(write: Callable[[Any], str], value: Any, limit: int) -> str:
    """str or repr of a plugin's object on one line, of bounded length, whatever it does when it is asked."""
    try:
        text = "".join(c if c.isprintable() else " " for c in write(value))
    except Exception:
        return "unreadable"
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}..."
