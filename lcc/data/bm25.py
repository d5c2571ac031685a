"""BM25 search: which of many texts is nearest to a question by its words (Robertson, Zaragoza, 2009)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lcc.data.cleaning import UNIT


@dataclass(frozen=True)
class Match:
    """A text by its number; `coverage` is the share of the question's words that its head holds.

    English stop words say nothing, others weigh by their rarity among all texts; a word that stands
    in none of them weighs as much as the rarest. A question of stop words alone is covered by none.
    """

    number: int
    coverage: float


class Index:
    """Texts ready to be searched; `heads` are what coverage is measured by, or else the texts."""

    def __init__(self, texts: Sequence[str], heads: Sequence[str] | None = None) -> None:
        import bm25s

        self._heads = [set(words_of(text)) for text in heads or texts]
        self._words = [words_of(text) for text in texts]
        self._counts = Counter(word for words in self._words for word in set(words))
        self._index: Any = bm25s.BM25()
        # An empty text still has its place; no question holds this word.
        self._index.index([words or [""] for words in self._words], show_progress=False)

    def nearest(self, question: str, num: int) -> list[Match]:
        """The `num` best texts, best first; of equal ones the earlier."""
        import numpy as np

        words = [word for word in words_of(question) if word in self._counts]
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[:num].tolist()
        return [Match(i, self._coverage(question, i)) for i in best if scores[i] > 0]

    def _coverage(self, question: str, number: int) -> float:
        asked = set(words_of(question)) - _silent()
        weights = {word: self._rarity(word) for word in asked}
        held = sum(weights[word] for word in asked & self._heads[number])
        return min(1.0, held / sum(weights.values())) if asked else 0.0

    def _rarity(self, word: str) -> float:
        num, seen = len(self._words), max(1, self._counts[word])
        return math.log(1 + (num - seen + 0.5) / (seen + 0.5))


def words_of(text: str) -> list[str]:
    """Lower-case stems of an alphabetic script, single characters of Chinese and its like."""
    return [_stem(word) for word in UNIT.findall(text.lower())]


def is_stop_word(word: str) -> bool:
    """Whether a single English word says nothing of what a text is about."""
    return all(stem in _silent() for stem in words_of(word))


@cache
def _silent() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(word for text in STOPWORDS_EN_PLUS for word in words_of(text))


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@cache
def _stem(word: str) -> str:
    return str(_stemmer().stem(word)) if word.isascii() else word
