"""Memory that glibc keeps: blocks that are freed and needed again a moment later.

A forward pass frees hundreds of tensors of some megabytes and allocates them again in the next one. glibc gives such
blocks back to the system at once, which then hands out each page again and fills it with zeros: up to a fifth of an
iteration of PPO on a virtual machine (docs/performance.md).

Not here: other systems and C libraries, which are left as they are.
"""

import ctypes
import sys
from typing import Final

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's settings in glibc's malloc.h
KEPT: Final = 1 << 30  # bytes at the end of the heap that are kept when they are free
LARGE: Final = 1 << 25  # bytes from which on a block is none of the heap: the most that glibc accepts


def keep_memory() -> bool:
    """Keep freed blocks for the next tensors of this process; returns False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, LARGE))
