"""Lead: the first words of the text itself, what every summariser must beat (Brandow, 1995)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.methods.baselines import texts

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


# One Chinese or Japanese character, or what stands between two spaces.
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@card
class Lead:
    """The first `words` words of the row's `of`; in Chinese, that many characters."""

    word: ClassVar[str] = "lead"
    revision: ClassVar[int] = 1

    of: str = "source"
    words: Annotated[int, Field(ge=1)] = 8

    @property
    def description(self) -> str:
        return f"the first {self.words} words of the {self.of}"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        return [_first(text, self.words) for text in texts(rows, self.of)]


def _first(text: str, num: int) -> str:
    pieces = list(PIECE.finditer(text))
    return text[: pieces[num - 1].end()] if len(pieces) >= num else text
