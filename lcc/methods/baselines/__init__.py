"""The shelf of baselines: what answers a task without any model, to be beaten by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from lcc.core.errors import DataError

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@runtime_checkable
class Baseline(Protocol):
    """Answers held-out rows from what the training split shows, or from the row's own text."""

    revision: ClassVar[int]

    @property
    def description(self) -> str:
        """What it does, in words that stand beside its figures."""
        ...

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        """One answer per row."""
        ...


def texts(rows: Sequence[Row], of: str) -> list[str]:
    """The field `of` of every row; raises DataError where rows have none."""
    if rows and of not in rows[0]:
        known = ", ".join(rows[0])
        raise DataError(f"task.baseline.of: rows have no field {of!r} ({known}).")
    return [str(row[of]) for row in rows]


def questions(task: Task, rows: Sequence[Row]) -> list[str]:
    """What every row asks: its own question, or what its task's template makes of it."""
    return [str(row["question"] if "question" in row else task.question(row)) for row in rows]
