"""Processes forked from one that has imported everything: killed, and asked how they ended.

The parent never computes: a pool of threads that it had started would not survive a fork.
"""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable
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


def import_all() -> None:
    """What a run needs, once, before the forks; nothing is computed."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import lcc.runner
    import lcc.stages.finetune  # noqa: F401

    torch.set_num_threads(1)
