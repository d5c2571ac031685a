"""ROUGE-1: 1-grams shared with the reference, as F1 (Lin, 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Answer, Need
from lcc.methods.metrics import Words, mean_columns, mean_of

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

# -----------------------------------------------------------------------------
# ROUGE by the rouge-score library, once for its three cards.


STEMMED = ("", "en")


def rouge_f1(kind: str, answers: Sequence[Answer], language: str) -> list[float]:
    """F1 of every answer; `kind` as rouge-score calls it: rouge1, rouge2, rougeL."""
    from rouge_score.rouge_scorer import RougeScorer

    if language in STEMMED:
        scorer = RougeScorer([kind], use_stemmer=True)
    else:
        scorer = RougeScorer([kind], tokenizer=Words())
    return [scorer.score(one.reference, one.output or "")[kind].fmeasure for one in answers]


def _signature(name: str, language: str) -> str:
    how = "words,porter" if language in STEMMED else "words,characters of Chinese"
    return f"{name}|f1|mean over samples|tok:{how}|rouge-score:{version('rouge-score')}"


@card
class Rouge1:
    """By rouge-score; English words are stemmed, Chinese is compared by characters."""

    word: ClassVar[str] = "rouge_1"
    label: ClassVar[str] = "ROUGE-1"
    order: ClassVar[int] = 50
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns(rouge_f1("rouge1", answers, language))

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return _signature("rouge_1", language)


# -----------------------------------------------------------------------------
# ROUGE-2: 2-grams shared with the reference, as F1 (Lin, 2004).


@card
class Rouge2:
    """By rouge-score; English words are stemmed, Chinese is compared by characters."""

    word: ClassVar[str] = "rouge_2"
    label: ClassVar[str] = "ROUGE-2"
    order: ClassVar[int] = 60
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns(rouge_f1("rouge2", answers, language))

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return _signature("rouge_2", language)


# -----------------------------------------------------------------------------
# ROUGE-L: the longest common subsequence of words with the reference, as F1 (Lin, 2004).


@card
class RougeL:
    """By rouge-score; English words are stemmed, Chinese is compared by characters."""

    word: ClassVar[str] = "rouge_l"
    label: ClassVar[str] = "ROUGE-L"
    order: ClassVar[int] = 40
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers: Sequence[Answer], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        return mean_columns(rouge_f1("rougeL", answers, language))

    def score(self, sums: Floats) -> Floats:
        """Mean over samples, 0 to 1."""
        return mean_of(sums)

    def signature(self, language: str) -> str:
        return _signature("rouge_l", language)
