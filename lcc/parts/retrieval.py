"""Which of many texts is nearest to a question by its words (BM25; Robertson, Zaragoza, 2009)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lcc.parts.cleaning import UNIT


@dataclass(frozen=True)
class Found:
    """A text by its number; `coverage` is the share of the question's words that it holds.

    Words weigh by their rarity among all texts, so that "the" says nothing; a word that stands in
    none of them weighs as much as the rarest.
    """

    number: int
    coverage: float


class Index:
    """Texts ready to be searched."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._words = [words_of(text) for text in texts]
        self._counts = Counter(word for words in self._words for word in set(words))
        self._index: Any = bm25s.BM25()
        # An empty text still has its place; no question holds this word.
        self._index.index([words or [""] for words in self._words], show_progress=False)

    def nearest(self, question: str, num: int) -> list[Found]:
        """The `num` best texts, best first; of equal ones the earlier."""
        import numpy as np

        words = [word for word in words_of(question) if word in self._counts]
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:num].tolist()
        return [Found(i, self._coverage(question, i)) for i in best if scores[i] > 0]

    def _coverage(self, question: str, number: int) -> float:
        asked, held = set(words_of(question)), set(self._words[number])
        weights = {word: self._rarity(word) for word in asked}
        return sum(weights[word] for word in asked & held) / sum(weights.values())

    def _rarity(self, word: str) -> float:
        num, seen = len(self._words), max(1, self._counts[word])
        return math.log(1 + (num - seen + 0.5) / (seen + 0.5))


def words_of(text: str) -> list[str]:
    """Lower-case stems of an alphabetic script, single characters of Chinese and its like."""
    return [_stem(word) for word in UNIT.findall(text.lower())]


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@cache
def _stem(word: str) -> str:
    return str(_stemmer().stem(word)) if word.isascii() else word
