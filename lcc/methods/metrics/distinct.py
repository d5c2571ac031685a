"""Distinct-n: different n-grams over all n-grams of all answers together (Li et al., 2016)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.cleaning import UNIT
from lcc.evaluation.metrics import Prediction
from lcc.methods.metrics import Mean

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

Gram = tuple[str, ...]


def ngrams(text: str, n: int) -> list[Gram]:
    """Every run of `n` words (of Chinese, characters), in lower case, in order."""
    words = UNIT.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


class Distinct(Mean):
    """Falls with the number and length of answers: compare equal samples and limits only."""

    word: ClassVar[str]
    n: ClassVar[int]

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: this answer's share of the different n-grams of all answers, and its n-grams.

        An n-gram that occurs k times counts 1/k each time, so that the sum over all answers is the number
        of different ones, while resampled sums stay about as large: counted anew they would be smaller.
        """
        import numpy as np

        grams = [ngrams(one.output or "", self.n) for one in answers]
        counts = Counter(gram for own in grams for gram in own)
        rows = [[sum(1 / counts[gram] for gram in own), float(len(own))] for own in grams]
        return np.array(rows, dtype=float).reshape(len(rows), 2)

    def signature(self, language: str) -> str:
        return f"{self.word}|over all answers together|words lower case, Chinese by characters"


@card
class Distinct1(Distinct):
    """Different words."""

    word: ClassVar[str] = "distinct_1"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "distinct-1"
    order: ClassVar[int] = 90
    n: ClassVar[int] = 1


@card
class Distinct2(Distinct):
    """Different pairs of words."""

    word: ClassVar[str] = "distinct_2"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "distinct-2"
    order: ClassVar[int] = 100
    n: ClassVar[int] = 2
