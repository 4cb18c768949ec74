"""minirlhf: the whole of RLHF, small enough to read in an afternoon.

Importing the package must stay cheap (no torch), so that `minirlhf --help` answers at once and a plugin file can
import `hookimpl` without paying for a framework that it may not need.
"""

from importlib.metadata import PackageNotFoundError, version

import pluggy

hookimpl = pluggy.HookimplMarker("minirlhf")

try:
    __version__ = version("minirlhf")
except PackageNotFoundError:  # a wheel unpacked by hand, or a source tree on the path
    __version__ = "0+unknown"

__all__ = ["__version__", "hookimpl"]
