"""Macro-F1: the F1 of each class, averaged with equal weight, so that rare classes count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class MacroF1:
    """Over the classes that occur as reference or as answer, like scikit-learn's `macro`."""

    word: ClassVar[str] = "macro_f1"
    label: ClassVar[str] = "macro-F1"
    order: ClassVar[int] = 140
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Three columns per class: right, answered, wanted."""
        import numpy as np

        pairs = [((a.output or "").strip(), a.reference.strip()) for a in answers]
        classes = {name: i for i, name in enumerate(sorted({n for pair in pairs for n in pair}))}
        counts = np.zeros((len(answers), 3 * len(classes)))
        for row, (output, reference) in zip(counts, pairs, strict=True):
            row[3 * classes[output] + 1] = 1
            row[3 * classes[reference] + 2] = 1
            row[3 * classes[output]] = output == reference
        return counts

    def score(self, sums: Floats) -> Floats:
        """Mean of 2 · right / (answered + wanted) over classes, 0 to 1."""
        import numpy as np

        right, both = sums[..., 0::3], sums[..., 1::3] + sums[..., 2::3]
        each = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
        return np.asarray(each.sum(axis=-1) / np.maximum((both > 0).sum(axis=-1), 1))

    def signature(self, language: str) -> str:
        return "macro_f1|classes:occurring"
