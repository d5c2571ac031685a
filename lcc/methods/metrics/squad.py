"""SQuAD's metrics: exact match and token F1 of normalised answers (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.cleaning import UNIT
from lcc.evaluation.metrics import Prediction
from lcc.methods.metrics import Mean, mean_columns

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = re.compile(r"[^\w\s]|_")


def normal(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", PUNCTUATION.sub("", text.lower())).split())


def f1(output: str, reference: str) -> float:
    """F1 of the words of both, as bags; of Chinese, of its characters."""
    words, expected = UNIT.findall(normal(output)), UNIT.findall(normal(reference))
    if not words or not expected:
        return float(words == expected)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))


@card
class ExactMatch(Mean):
    """The share of answers that are the reference, articles and punctuation aside."""

    word: ClassVar[str] = "exact_match"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "exact match"
    order: ClassVar[int] = 70

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: equal, one."""
        return mean_columns([float(normal(a.output or "") == normal(a.reference)) for a in answers])

    def signature(self, language: str) -> str:
        return "exact_match|SQuAD: lower case, no punctuation, no articles"


@card
class TokenF1(Mean):
    """F1 of the bags of words of answer and reference; of Chinese, of the characters."""

    word: ClassVar[str] = "token_f1"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "token F1"
    order: ClassVar[int] = 80

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns([f1(one.output or "", one.reference) for one in answers])

    def signature(self, language: str) -> str:
        return "token_f1|SQuAD: lower case, no punctuation, no articles|bags of words"
