"""Exact match: the share of answers that are the reference, articles and punctuation aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.methods.metrics._overlap import mean_columns, mean_of
from lcc.methods.metrics._squad import normal
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class ExactMatch:
    """SQuAD's normalisation (Rajpurkar et al., 2016)."""

    word: ClassVar[str] = "exact_match"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: equal, one."""
        return mean_columns([float(normal(a.output or "") == normal(a.reference)) for a in answers])

    def score(self, sums: Floats) -> Floats:
        """Equal answers over answers, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "exact_match|SQuAD: lower case, no punctuation, no articles"
