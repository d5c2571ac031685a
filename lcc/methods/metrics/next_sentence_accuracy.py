"""Next-sentence accuracy: the share of pairs told apart, half of them random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class NextSentenceAccuracy:
    """Chance is one half; texts of one sentence make no pair and do not count."""

    word: ClassVar[str] = "next_sentence_accuracy"
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "guesses"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: right, pairs."""
        import numpy as np

        return np.array([[one.counts["pair_hits"], one.counts["pairs"]] for one in answers])

    def score(self, sums: Floats) -> Floats:
        """0 to 1; 0 where nothing was asked."""
        import numpy as np

        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    def signature(self, language: str) -> str:
        return "next_sentence_accuracy|random:50%"
