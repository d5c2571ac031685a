"""Distinct-2: different 2-grams over all 2-grams of all answers together (Li et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.methods.metrics._ngrams import distinct_columns
from lcc.methods.metrics._overlap import mean_of
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class Distinct2:
    """Falls with the number and length of answers: compare equal samples and limits only."""

    word: ClassVar[str] = "distinct_2"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the answer's part in the different 2-grams, its 2-grams."""
        return distinct_columns(answers, 2)

    def score(self, sums: Floats) -> Floats:
        """Different over all, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "distinct_2|over all answers together|words lower case, Chinese by characters"
