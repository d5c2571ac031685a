"""METEOR: matched words, weighted towards recall, less a penalty for their order (Lavie, 2007)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class Meteor:
    """NLTK's METEOR, averaged over samples.

    Chinese is segmented by jieba and matched exactly; English also by Porter stem and, where
    NLTK finds WordNet on this machine, by synonym; other languages exactly. The signature says.
    """

    word: ClassVar[str] = "meteor"
    label: ClassVar[str] = "METEOR"
    order: ClassVar[int] = 30
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "METEOR"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: the sample's METEOR, one."""
        import numpy as np
        from nltk.translate.meteor_score import meteor_score

        stemmer, wordnet, _ = _matchers(language)
        scores = []
        for answer in answers:
            output = _words(answer.output or "", language)
            reference = _words(answer.reference, language)
            matched = output and reference
            scores.append(
                meteor_score([reference], output, stemmer=stemmer, wordnet=wordnet) if matched else 0.0
            )
        return np.array([[score, 1.0] for score in scores])

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 100."""
        import numpy as np

        return np.asarray(100 * sums[..., 0] / sums[..., 1])

    def signature(self, language: str) -> str:
        from importlib.metadata import version

        words = f"jieba-{version('jieba')}" if language == "zh" else "words"
        return f"METEOR|match:{_matchers(language)[2]}|tok:{words}|nltk:{version('nltk')}"


class _Exact:
    """Stands in for a stemmer and for WordNet where a language has neither."""

    def stem(self, word: str) -> str:
        return word

    def synsets(self, word: str) -> list[Any]:
        return []


def _matchers(language: str) -> tuple[Any, Any, str]:
    """Stemmer, WordNet, and the words for both in the signature."""
    if language not in ("", "en"):
        return _Exact(), _Exact(), "exact"
    from nltk.corpus import wordnet
    from nltk.stem.porter import PorterStemmer

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return PorterStemmer(), _Exact(), "exact,stem"
    return PorterStemmer(), wordnet, "exact,stem,wordnet"


def _words(text: str, language: str) -> list[str]:
    if language == "zh":
        import jieba

        jieba.setLogLevel(logging.WARNING)
        return [word for word in jieba.cut(text.lower()) if word.strip()]
    return re.findall(r"\w+|[^\w\s]", text.lower())
