"""Runs of n words in answers, for metrics of how much a model says again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcc.parts.cleaning import UNIT
from lcc.parts.metrics import Answer

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats

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
