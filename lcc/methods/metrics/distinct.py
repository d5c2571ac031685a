"""Runs of n words in answers, for metrics of how much a model says again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.cleaning import UNIT
from lcc.evaluation.metrics import Answer, Need
from lcc.methods.metrics import mean_of

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

Gram = tuple[str, ...]


def ngrams(text: str, n: int) -> list[Gram]:
    """Every run of `n` words (of Chinese, characters), in lower case, in order."""
    words = UNIT.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_columns(answers: Sequence[Answer], n: int) -> Floats:
    """Columns: this answer's share of the different n-grams of all answers, and its n-grams.

    An n-gram said k times counts 1/k each time, so that the sum over all answers is the number of
    different ones, while resampled sums stay about as large: their counting anew would be smaller.
    """
    import numpy as np

    said = [ngrams(one.output or "", n) for one in answers]
    counts = Counter(gram for grams in said for gram in grams)
    rows = [[sum(1 / counts[gram] for gram in grams), float(len(grams))] for grams in said]
    return np.array(rows, dtype=float).reshape(len(rows), 2)


# -----------------------------------------------------------------------------
# Distinct-1: different 1-grams over all 1-grams of all answers together (Li et al., 2016).


@card
class Distinct1:
    """Falls with the number and length of answers: compare equal samples and limits only."""

    word: ClassVar[str] = "distinct_1"
    label: ClassVar[str] = "distinct-1"
    order: ClassVar[int] = 90
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the answer's part in the different 1-grams, its 1-grams."""
        return distinct_columns(answers, 1)

    def score(self, sums: Floats) -> Floats:
        """Different over all, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "distinct_1|over all answers together|words lower case, Chinese by characters"


# -----------------------------------------------------------------------------
# Distinct-2: different 2-grams over all 2-grams of all answers together (Li et al., 2016).


@card
class Distinct2:
    """Falls with the number and length of answers: compare equal samples and limits only."""

    word: ClassVar[str] = "distinct_2"
    label: ClassVar[str] = "distinct-2"
    order: ClassVar[int] = 100
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the answer's part in the different 2-grams, its 2-grams."""
        return distinct_columns(answers, 2)

    def score(self, sums: Floats) -> Floats:
        """Different over all, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "distinct_2|over all answers together|words lower case, Chinese by characters"
