"""The stack that a thread's signal handlers run on, kept from libraries that swap it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux, see sigaltstack(2)."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Afterwards this thread has the alternate signal stack that it had before.

    Each of OpenVINO's processor plugins gives it a stack of its own. Of two that are destroyed in
    the order in which they came, the second leaves the first one's, which is freed by then: the
    next signal, a SIGTERM that training would have saved its state at, ends the process by
    SIGSEGV and without a word (measured with OpenVINO 2026.4.1).
    """
    swap = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    before = _Stack()
    if swap is None or swap(None, ctypes.byref(before)):
        yield
        return
    try:
        yield
    finally:
        swap(ctypes.byref(before), None)
