"""Unigram accuracy: what always guessing the most frequent training token reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class UnigramAccuracy:
    """The baseline of masked accuracy, on the same hidden tokens; no model is asked."""

    word: ClassVar[str] = "unigram_accuracy"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "guesses"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: guessed, hidden."""
        import numpy as np

        return np.array([[one.counts["unigram_hits"], one.counts["masked"]] for one in answers])

    def score(self, sums: Floats) -> Floats:
        """0 to 1; 0 where nothing was asked."""
        import numpy as np

        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    def signature(self, language: str) -> str:
        return "unigram_accuracy|guess:most frequent training token|hidden:15%"
