"""Exact match: the share of answers that are the reference, articles and punctuation aside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.data.cleaning import UNIT
from lcc.evaluation.metrics import Answer, Need
from lcc.methods.metrics import mean_columns, mean_of

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

# -----------------------------------------------------------------------------
# SQuAD's idea of equal answers and of shared words (Rajpurkar et al., 2016).


ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = re.compile(r"[^\w\s]|_")


def normal(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", PUNCTUATION.sub("", text.lower())).split())


def f1(output: str, reference: str) -> float:
    """F1 of the words of both, as bags; of Chinese, of its characters."""
    said, wanted = UNIT.findall(normal(output)), UNIT.findall(normal(reference))
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


@card
class ExactMatch:
    """SQuAD's normalisation (Rajpurkar et al., 2016)."""

    word: ClassVar[str] = "exact_match"
    label: ClassVar[str] = "exact match"
    order: ClassVar[int] = 70
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: equal, one."""
        return mean_columns([float(normal(a.output or "") == normal(a.reference)) for a in answers])

    def score(self, sums: Floats) -> Floats:
        """Equal answers over answers, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "exact_match|SQuAD: lower case, no punctuation, no articles"


# -----------------------------------------------------------------------------
# Token F1: how many words an answer and its reference share (Rajpurkar et al., 2016).


@card
class TokenF1:
    """SQuAD's F1 over bags of words; of Chinese, over characters."""

    word: ClassVar[str] = "token_f1"
    label: ClassVar[str] = "token F1"
    order: ClassVar[int] = 80
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns([f1(one.output or "", one.reference) for one in answers])

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return "token_f1|SQuAD: lower case, no punctuation, no articles|bags of words"
