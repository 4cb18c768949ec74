"""Running a plugin's code: its prints, its exceptions and the process state that it may change.

Every fault becomes one PluginError that names plugin, component, file and line. Not here: checks of results, checks.py.
"""

import contextlib
import functools
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from minirlhf import signals
from minirlhf.errors import PluginError
from minirlhf.signals import SIGNALS, Terminated


@contextlib.contextmanager
def naming(title: str, where: str, path: str, code: Any = None) -> Iterator[None]:
    """Context that turns every exception of a plugin (SystemExit and RecursionError, too) into a PluginError.

    The error names `title` and the deepest line of the plugin's own file on the way to the fault, else `where`.
    KeyboardInterrupt and Terminated come from the user and pass.
    """
    process = os.getpid()
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as fault:
        end_if_forked(process, fault)
        signals.leave_if_asked(f"{title} failed")
        at = _raised_at(fault, {path, _filename(code)}) or where
        raise PluginError(f"{title} raised {_describe(fault)}", at, "fix the plugin, or run without it") from fault


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Context in which prints go to stderr; it restores the state of the process on which a run relies.

    stdout holds results, which programs read. Restored are stderr (opened again if it was closed), the handlers of the
    signals that stop a run, the working directory, and torch's default dtype and device, grad mode and CPU threads.
    """
    torch = sys.modules.get("torch")
    here, err = _cwd(), sys.stderr
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    mode = _torch_mode(torch) if torch else None
    around, signals.plugin_call = signals.plugin_call, object()
    process = os.getpid()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        end_if_forked(process)
    except BaseException as fault:
        end_if_forked(process, fault)
        raise
    finally:
        signals.plugin_call = around
        if err.closed:
            err = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = err
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        if here and _cwd() != here:
            os.chdir(here)
        if torch and mode and mode != _torch_mode(torch):
            dtype, grad, threads, device = mode
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            torch.set_num_threads(threads)
            torch.set_default_device(None if device.type == "cpu" else device)


def end_if_forked(process: int, fault: BaseException | None = None) -> None:
    """End a child that a plugin forked and that comes back out of its code: it would go on as a second run.

    process: the pid that went in. The child's exit code is what Python would give it for the fault.
    """
    if os.getpid() == process:
        return
    code = 0 if fault is None else 1
    if isinstance(fault, SystemExit):
        code = fault.code if isinstance(fault.code, int) else int(fault.code is not None)
    elif fault is not None:
        traceback.print_exception(fault)
    with contextlib.suppress(OSError, ValueError):  # a stream that the plugin closed
        sys.stderr.flush()
    os._exit(code)


def _torch_mode(torch: Any) -> tuple[Any, bool, int, Any]:
    """Default dtype, grad mode, number of CPU threads (sums depend on it) and default device."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_device(),
    )


def _describe(fault: BaseException) -> str:
    """Exception as `Type (message)`, printable and of bounded length."""
    message = printable_repr(str, fault, 300)
    return f"{type(fault).__name__} ({message})" if message else type(fault).__name__


def _raised_at(fault: BaseException, files: set[str]) -> str:
    """FILE:LINE of the deepest frame in one of these files, or of a syntax error in one of them; else ""."""
    if isinstance(fault, SyntaxError) and fault.filename in files and fault.lineno:
        return f"{fault.filename}:{fault.lineno}"
    at = ""
    for frame, line in traceback.walk_tb(fault.__traceback__):
        if frame.f_code.co_filename in files:
            at = f"{frame.f_code.co_filename}:{line}"
    return at


def plain_function(obj: Any) -> Any:
    """Plain function behind a class, a partial, a decorated function or an object with __call__."""
    if inspect.isclass(obj):
        own = [own_method(obj, name) for name in ("forward", "__call__", "step", "__init__")]
        return next((f for f in own if hasattr(f, "__code__")), obj)
    while isinstance(obj, functools.partial):
        obj = obj.func
    obj = inspect.unwrap(obj) if callable(obj) else obj
    return obj if hasattr(obj, "__globals__") else vars(type(obj)).get("__call__", obj)


def own_method(cls: type, name: str) -> Any:
    """Method that the class or a base defines, or None; a plain getattr would find type.__call__ in every class."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _filename(obj: Any) -> str:
    code = getattr(plain_function(obj), "__code__", None)
    return code.co_filename if code else ""


def definition_place(obj: Any, path: str) -> str:
    """FILE:LINE of the definition of a function or class; `path` if that is not known."""
    code = getattr(plain_function(obj), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else path


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def is_module(obj: Any) -> bool:
    """True for an nn.Module; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.nn.Module)


def is_module_class(obj: Any) -> bool:
    """True for a subclass of nn.Module; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and inspect.isclass(obj) and issubclass(obj, torch.nn.Module)


def version_of(value: Any) -> int:
    """Number of in-place changes of a tensor; 0 for an inference tensor, which has no counter, and for all else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.is_inference():
        return 0
    return int(value._version)


def describe_value(value: Any) -> str:
    """Short text of a value and its type, such as `'good' (str)`, `nan (float)` or `None`."""
    if value is None:
        return "None"
    return f"{printable_repr(repr, value, 60)} ({type(value).__name__})"


def printable_repr(write: Callable[[Any], str], value: Any, limit: int) -> str:
    """str or repr of a plugin's object on one line, of bounded length; "unreadable" if that raises."""
    try:
        text = "".join(c if c.isprintable() else " " for c in write(value))
    except Exception:  # the plugin's own __repr__ may raise anything, and this text is only part of a message
        return "unreadable"
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}..."
