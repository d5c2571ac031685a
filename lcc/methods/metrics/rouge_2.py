"""ROUGE-2: 2-grams shared with the reference, as F1 (Lin, 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.methods.metrics._overlap import mean_columns, mean_of
from lcc.methods.metrics._rouge import rouge, signature_of
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class Rouge2:
    """By rouge-score; English words are stemmed, Chinese is compared by characters."""

    word: ClassVar[str] = "rouge_2"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns(rouge("rouge2", answers, language))

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return signature_of("rouge_2", language)
