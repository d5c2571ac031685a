"""Processes forked from one that has imported everything: killed, and asked how they ended.

The parent never computes: a pool of threads that it had started would not survive a fork.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CRASHED = 99


@dataclass
class Child:
    """A forked process, whose output goes to `log`."""

    pid: int
    log: Path

    def ended(self) -> int:
        """Its exit code once it has ended; minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def killed_after(self, seconds: float) -> int:
        """How it ended, by SIGKILL unless it is done within `seconds`."""
        handle = os.pidfd_open(self.pid)
        try:
            if not select.select([handle], [], [], seconds)[0]:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(handle)
        return self.ended()

    def told(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def fork(work: Callable[[], int], log: Path) -> Child:
    """Run `work` in a forked process; what it returns is its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = CRASHED
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finished(work: Callable[[], int], log: Path) -> Child:
    """`work` in a forked process that must end well."""
    child = fork(work, log)
    code = child.ended()
    assert code == 0, f"ended with {code}: {child.told()}"
    return child


def import_like(work: Callable[[], int], log: Path) -> None:
    """Run `work` once in a forked process, then import here what it has come to need.

    Later forks find it all: importing takes seconds, a small run does not.
    """
    names = log.with_suffix(".modules")

    def told() -> int:
        code = work()
        names.write_text("\n".join(sys.modules), encoding="utf-8")
        return code

    finished(told, log)
    for name in names.read_text(encoding="utf-8").splitlines():
        if name != "__main__":
            with suppress(Exception):  # what cannot be imported alone is imported when needed
                importlib.import_module(name)
