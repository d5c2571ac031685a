"""The shelf of baselines: what answers a task without any model, to be beaten by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lcc.parts.task import Row, Task


@runtime_checkable
class Baseline(Protocol):
    """Answers held-out rows from what the training split shows, or from the row's own text."""

    revision: ClassVar[int]

    @property
    def said(self) -> str:
        """What it does, in words that stand beside its figures."""
        ...

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        """One answer per row."""
        ...
