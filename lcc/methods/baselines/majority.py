"""Majority: always the training split's most frequent answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@card
class Majority:
    """Of several equally frequent answers the first by alphabet."""

    word: ClassVar[str] = "majority"
    revision: ClassVar[int] = 1

    @property
    def description(self) -> str:
        return "the training split's most frequent answer"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        counts = Counter(task.completion(row).strip() for row in training)
        name = min(counts, key=lambda answer: (-counts[answer], answer))
        return [name] * len(rows)
