"""Accuracy of masked language models: hidden tokens, their unigram baseline, and sentence pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction
from lcc.methods.metrics import Mean

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


class Hits(Mean):
    """Right predictions over predictions, 0 to 1; 0 where none was made."""

    needs: ClassVar[Need] = "guesses"
    columns: ClassVar[tuple[str, str]]  # which counts of an answer: right, all

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: right, all."""
        import numpy as np

        return np.array([[one.counts[name] for name in self.columns] for one in answers])


@card
class MaskedAccuracy(Hits):
    """Hidden tokens, hidden as in pretraining; comparable between models of one vocabulary only."""

    word: ClassVar[str] = "masked_accuracy"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "masked accuracy"
    order: ClassVar[int] = 180
    columns: ClassVar[tuple[str, str]] = ("hits", "masked")

    def signature(self, language: str) -> str:
        return "masked_accuracy|hidden:15%|per:token|vocabulary:the model's own"


@card
class UnigramAccuracy(Hits):
    """The baseline of masked accuracy, always the most frequent training token, on the same tokens."""

    word: ClassVar[str] = "unigram_accuracy"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "unigram accuracy"
    order: ClassVar[int] = 190
    columns: ClassVar[tuple[str, str]] = ("unigram_hits", "masked")

    def signature(self, language: str) -> str:
        return "unigram_accuracy|guess:most frequent training token|hidden:15%"


@card
class NextSentenceAccuracy(Hits):
    """Sentence pairs classified, half of them random; texts of one sentence make no pair and do not count."""

    word: ClassVar[str] = "next_sentence_accuracy"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "next sentence accuracy"
    order: ClassVar[int] = 200
    columns: ClassVar[tuple[str, str]] = ("pair_hits", "pairs")

    def signature(self, language: str) -> str:
        return "next_sentence_accuracy|random:50%"
