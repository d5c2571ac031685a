"""One launched command as a child process: its log, its exit code, and how it is asked to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lcc.core.disk import write_json
from lcc.core.errors import PreemptedError
from lcc.methods.launchers import LaunchedTask

PREEMPTED = PreemptedError.exit_code
SECONDS_TO_SAVE = 120.0  # a child that was asked to end may write its state so long


def start(
    task: LaunchedTask, *, environment: Mapping[str, str] | None = None, cores: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """The task as a child in a session of its own, on `cores` where the system can tell it so."""
    own = {**os.environ, **(environment or {})}
    if task.pythonpath:
        own["PYTHONPATH"] = task.pythonpath
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log, _on(cores):
        # A session of its own: Ctrl-C reaches the driver, which then asks each child in turn.
        return subprocess.Popen(
            task.command,
            cwd=task.cwd,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_to_end(child: subprocess.Popen[bytes], task: LaunchedTask) -> int:
    """Wait for the child and leave its exit code beside the log, where any driver finds it."""
    while not has_ended(child):
        time.sleep(0.1)
    code = child.wait()
    write_json(_end_file(task.log), code)
    return code


def fate_of(log: Path) -> str:
    """How the task with this log ended elsewhere, in words."""
    try:
        return exit_sentence(int(json.loads(_end_file(log).read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return "is gone without a word of its own"


def forget_end(log: Path) -> None:
    """A task that starts again has not ended."""
    _end_file(log).unlink(missing_ok=True)


def _end_file(log: Path) -> Path:
    return log.with_suffix(".exit")


class _on:
    """What is started inside inherits these cores; the thread itself goes back to its own."""

    def __init__(self, cores: Sequence[int]) -> None:
        self.cores = set(cores) if hasattr(os, "sched_setaffinity") else set()
        self.before: set[int] = set()

    def __enter__(self) -> None:
        if self.cores:
            self.before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, self.cores)

    def __exit__(self, *error: object) -> None:
        if self.cores:
            os.sched_setaffinity(0, self.before)


def ask_to_end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which a point answers by saving its state."""
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it is dead; leaves its exit status to whoever waits for it.

    `poll` and `wait` hold a lock that a signal handler, running in the middle of one of them,
    would never get.
    """
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def end(child: subprocess.Popen[bytes], *, seconds: float = SECONDS_TO_SAVE) -> None:
    """Ask the child to end and wait; what has not saved its state by then is killed."""
    ask_to_end(child)
    deadline = time.monotonic() + seconds
    while not has_ended(child):
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.05)


def exit_sentence(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} and without a word of its own"
