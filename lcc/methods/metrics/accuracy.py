"""Accuracy: the share of answers that are exactly the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class Accuracy:
    """Equal after stripping spaces at both ends; an empty answer is wrong."""

    word: ClassVar[str] = "accuracy"
    label: ClassVar[str] = "accuracy"
    order: ClassVar[int] = 130
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: correct, one."""
        import numpy as np

        hits = [(answer.output or "").strip() == answer.reference.strip() for answer in answers]
        return np.array([[float(hit), 1.0] for hit in hits])

    def score(self, sums: Floats) -> Floats:
        """Correct answers over answers, 0 to 1."""
        import numpy as np

        return np.asarray(sums[..., 0] / sums[..., 1])

    def signature(self, language: str) -> str:
        return "accuracy|match:exact,stripped"
