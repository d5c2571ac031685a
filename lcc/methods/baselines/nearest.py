"""Nearest: the answer that the most similar training question has, by BM25 over its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.bm25 import Index

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@card
class Nearest:
    """Where no word of a question was ever asked, the first training answer."""

    word: ClassVar[str] = "nearest"
    revision: ClassVar[int] = 1

    @property
    def description(self) -> str:
        return "the answer of the nearest training question (BM25)"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        index = Index([task.question(row) for row in training])
        matches = [index.nearest(task.question(row), 1) for row in rows]
        chosen = [best[0].number if best else 0 for best in matches]
        return [task.completion(training[i]).strip() for i in chosen]
