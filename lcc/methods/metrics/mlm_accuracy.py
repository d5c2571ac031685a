"""Masked accuracy: the share of hidden tokens that the model guesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class MaskedAccuracy:
    """Hidden as in pretraining; comparable between models of one vocabulary only."""

    word: ClassVar[str] = "masked_accuracy"
    label: ClassVar[str] = "masked accuracy"
    order: ClassVar[int] = 180
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "guesses"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: guessed, hidden."""
        import numpy as np

        return np.array([[one.counts["hits"], one.counts["masked"]] for one in answers])

    def score(self, sums: Floats) -> Floats:
        """0 to 1; 0 where nothing was asked."""
        import numpy as np

        return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))

    def signature(self, language: str) -> str:
        return "masked_accuracy|hidden:15%|per:token|vocabulary:the model's own"


# -----------------------------------------------------------------------------
# Next-sentence accuracy: the share of pairs told apart, half of them random.


@card
class NextSentenceAccuracy:
    """Chance is one half; texts of one sentence make no pair and do not count."""

    word: ClassVar[str] = "next_sentence_accuracy"
    label: ClassVar[str] = "next sentence accuracy"
    order: ClassVar[int] = 200
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


# -----------------------------------------------------------------------------
# Unigram accuracy: what always guessing the most frequent training token reaches.


@card
class UnigramAccuracy:
    """The baseline of masked accuracy, on the same hidden tokens; no model is asked."""

    word: ClassVar[str] = "unigram_accuracy"
    label: ClassVar[str] = "unigram accuracy"
    order: ClassVar[int] = 190
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
