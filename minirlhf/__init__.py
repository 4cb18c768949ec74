"""minirlhf: the whole of RLHF, small enough to read in an afternoon.

Importing the package must stay cheap (no torch), so that `minirlhf --help` answers at once and a plugin file can
import `hookimpl` without paying for a framework that it may not need.
"""

from importlib.metadata import PackageNotFoundError, version

import pluggy

# Name of the pluggy project, of the entry point group, and of the owner of built-in components.
PROJECT = "minirlhf"
hookimpl = pluggy.HookimplMarker(PROJECT)

try:
    __version__ = version(PROJECT)
except PackageNotFoundError:  # a wheel unpacked by hand, or a source tree on the path
    __version__ = "0+unknown"

__all__ = ["PROJECT", "__version__", "hookimpl"]
