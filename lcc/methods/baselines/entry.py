"""Entry: the answer of the FAQ's nearest entry as it stands, what a search without a model says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import DataError

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@card
class Entry:
    """Of the task's own grounding; nothing where no word is found."""

    word: ClassVar[str] = "entry"
    revision: ClassVar[int] = 1

    @property
    def description(self) -> str:
        return "the answer of the FAQ's nearest entry (BM25)"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        if task.grounding is None:
            raise DataError(f"task.baseline: entry needs task.grounding, which {task.name!r} does not have.")
        nearest = [task.grounding.nearest_entries([task.question(row)])[0] for row in rows]
        return [entries[0].answer if entries else "" for entries in nearest]
