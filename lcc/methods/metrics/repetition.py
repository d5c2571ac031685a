"""Repetition: the share of an answer's n-grams that it has said already (Welleck et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction
from lcc.methods.metrics import mean_columns, mean_of
from lcc.methods.metrics.distinct import ngrams

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class Repetition:
    """seq-rep-n: 1 − different n-grams / n-grams within each answer; one too short has none."""

    word: ClassVar[str] = "repetition"
    label: ClassVar[str] = "repetition"
    order: ClassVar[int] = 110
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = False

    n: Annotated[int, Field(ge=1)] = 4

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: the answer's repetition, one."""
        said = [ngrams(one.output or "", self.n) for one in answers]
        return mean_columns([1 - len(set(g)) / len(g) if g else 0.0 for g in said])

    def score(self, sums: Floats) -> Floats:
        """Mean over answers, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return f"repetition|seq-rep-{self.n}|mean over answers"
