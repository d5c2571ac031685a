"""Passage: the sentence or paragraph of the passage that shares most with the question (BM25)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lcc.config.cards import card
from lcc.data.bm25 import Index
from lcc.methods.baselines import questions, texts

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
PARAGRAPHS = re.compile(r"\n+")


@card
class Passage:
    """Of the field `of`; where no word is shared, the first one."""

    word: ClassVar[str] = "passage"
    revision: ClassVar[int] = 1

    of: str = "context"
    unit: Literal["sentence", "paragraph"] = "paragraph"

    @property
    def description(self) -> str:
        return f"the {self.unit} of the {self.of} nearest to the question (BM25)"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        both = zip(questions(task, rows), texts(rows, self.of), strict=True)
        return [self._best_part(question, text) for question, text in both]

    def _best_part(self, question: str, text: str) -> str:
        split = ENDS if self.unit == "sentence" else PARAGRAPHS
        parts = [part.strip() for part in split.split(text) if part and part.strip()] or [""]
        matches = Index(parts).nearest(question, 1)
        return parts[matches[0].number] if matches else parts[0]
