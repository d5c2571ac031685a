"""Signals that ask this process to stop: they raise one flag, which every long loop looks at."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lcc.core.errors import PreemptedError

# A scheduler's notice, Ctrl-C, and what Slurm's --signal=USR1 and submitit send ahead of time.
ASKING = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, n)]
TOLD = b"\nstopping where it can be continued; Ctrl-C again stops at once.\n"


class _StopRequest:
    """Signals that this process received since the outermost `watched` began."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.watching = self.tells = self.passes_on = False

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.number is not None:
                raise KeyboardInterrupt  # whoever asks twice does not want to wait
            if self.tells:
                os.write(2, TOLD)
        self.number = number
        if self.passes_on:
            for child in multiprocessing.active_children():
                assert child.pid is not None, "an active child has a pid"
                with suppress(ProcessLookupError):
                    # Never as SIGINT: a terminal sends that to the whole group by itself.
                    os.kill(child.pid, signal.SIGTERM)


_request = _StopRequest()


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _request.number is not None


def check(what: str) -> None:
    """Raise PreemptedError if this process was asked to stop while it does `what`."""
    if _request.number is not None:
        name = signal.Signals(_request.number).name
        raise PreemptedError(f"{what}: asked to stop ({name}).")


@contextmanager
def watched(*, tells: bool = False) -> Iterator[None]:
    """While open, SIGTERM, SIGUSR1 and Ctrl-C are requests that loops honour where they can stop.

    Inside an open one nothing changes. With `tells`, Ctrl-C is answered on the terminal.
    """
    if _request.watching or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    _request.number, _request.watching, _request.tells = None, True, tells
    previous = {number: signal.signal(number, _request.note) for number in ASKING}
    try:
        yield
    finally:
        # First, so that a second Ctrl-C here cannot leave us watching without a handler.
        _request.number, _request.watching = None, False
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def passed_on() -> Iterator[None]:
    """While open, a request also reaches every process that multiprocessing has started here."""
    _request.passes_on = True
    try:
        yield
    finally:
        _request.passes_on = False


# The stack that a thread's signal handlers run on, kept from libraries that swap it.


class _Stack(ctypes.Structure):
    """`stack_t` of Linux, see sigaltstack(2)."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


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
