"""Exclusive frequency: the baseline word that is most frequent in the passage and not in the question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.bm25 import is_stop_word, words_of
from lcc.data.cleaning import UNIT
from lcc.methods.baselines import questions, texts

if TYPE_CHECKING:
    from lcc.tasks.task import Task
    from lcc.tasks.template import Row


@card
class ExclusiveFrequency:
    """Of the field `of`, stop words aside and forms of a word counted together; of equally frequent
    words the first. What a reader of cloze questions must beat (Hermann et al., 2015).
    """

    word: ClassVar[str] = "exclusive_frequency"
    revision: ClassVar[int] = 1

    of: str = "context"

    @property
    def description(self) -> str:
        return f"the word that is most frequent in the {self.of} and not in the question"

    def outputs(self, task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[str]:
        both = zip(questions(task, rows), texts(rows, self.of), strict=True)
        return [_most_frequent(question, text) for question, text in both]


def _most_frequent(question: str, text: str) -> str:
    known = set(words_of(question))
    words = [str(word) for word in UNIT.findall(text) if not is_stop_word(word)]
    stems = [" ".join(words_of(word)) for word in words]
    counted = Counter(stem for stem in stems if stem not in known)
    if not counted:
        return ""
    return words[stems.index(counted.most_common(1)[0][0])]
