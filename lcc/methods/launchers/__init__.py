"""The shelf of launchers: how the points of a sweep run beside one another; its contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

RESTARTS = 3  # a preempted task is started again so often before a person is asked


@dataclass(frozen=True)
class LaunchedTask:
    """One plain command of many: nothing travels to another machine but these words."""

    index: int
    command: tuple[str, ...]
    log: Path  # both output streams are appended to it
    cwd: Path
    pythonpath: str = ""


@runtime_checkable
class TaskGroup(Protocol):
    """Tasks that run somewhere, also those that an earlier process had submitted."""

    poll_seconds: float

    def submit(self, tasks: Sequence[LaunchedTask]) -> None:
        """Start them, or put them where they wait for a free place."""
        ...

    def alive(self) -> set[int]:
        """The tasks that wait or run."""
        ...

    def fate(self, index: int) -> str:
        """How a task ended that left no word of its own, as far as can be told."""
        ...

    def stop(self, index: int) -> None:
        """Ask one task to save its state and end."""
        ...

    def close(self) -> str:
        """The driver leaves; a sentence about tasks that go on without it, or nothing."""
        ...


@runtime_checkable
class LauncherCard(Protocol):
    """What `launcher=NAME` chooses."""

    def capacity(self, *, adaptive: bool) -> int:
        """How many tasks may be submitted at a time.

        An adaptive sampler learns from results, so its tasks must not queue up before them.
        """
        ...

    def open(self, folder: Path, name: str) -> TaskGroup:
        """The task group of the sweep `name`, with its files below `folder`; raises ResourceError."""
        ...
