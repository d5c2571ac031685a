"""Memory: what malloc keeps of what was freed, and which errors say that there is not enough."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from lcc.core.lazy import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
LARGE_BYTES = 1 << 20
_SAYS_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
USUAL_BYTES = 1 << 25  # where glibc's own threshold ends up once tensors come and go


@functools.cache
def _libc() -> Any:
    """glibc, or None elsewhere."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def return_large_blocks() -> None:
    """From here on, large tensors go back to the system when freed, not onto a list of holes.

    glibc else raises its threshold to 32 MB, and holes of that size took 300 MB beside 400 MB of
    tensors.
    """
    if _libc() is not None:
        _libc().mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_large_blocks() -> None:
    """As before `return_large_blocks`: a step that trains would pay for fresh pages every time."""
    if _libc() is not None:
        _libc().mallopt(MMAP_THRESHOLD, USUAL_BYTES)
        _libc().mallopt(TRIM_THRESHOLD, 2 * USUAL_BYTES)


def return_freed() -> None:
    """Give back what was freed until now."""
    if _libc() is not None:
        _libc().malloc_trim(0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is what `error` is about, of a GPU or the machine's."""
    is_typed = isinstance(error, torch.OutOfMemoryError)
    return is_typed or any(words in str(error).lower() for words in _SAYS_MEMORY)
