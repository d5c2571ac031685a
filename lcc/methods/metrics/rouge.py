"""ROUGE: n-grams (1, 2) or the longest common subsequence (L) shared with the reference (Lin, 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Prediction
from lcc.methods.metrics import Mean, Words, mean_columns

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

STEMMED = ("", "en")


class Rouge(Mean):
    """F1 by rouge-score; English words are stemmed, Chinese is compared by characters."""

    word: ClassVar[str]
    kind: ClassVar[str]  # as rouge-score calls it

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: the sample's F1, one."""
        from rouge_score.rouge_scorer import RougeScorer

        is_stemmed = language in STEMMED
        scorer = RougeScorer([self.kind], use_stemmer=is_stemmed, tokenizer=None if is_stemmed else Words())
        scores = [scorer.score(one.reference, one.output or "") for one in answers]
        return mean_columns([score[self.kind].fmeasure for score in scores])

    def signature(self, language: str) -> str:
        how = "words,porter" if language in STEMMED else "words,characters of Chinese"
        return f"{self.word}|f1|mean over samples|tok:{how}|rouge-score:{version('rouge-score')}"


@card
class Rouge1(Rouge):
    """Words shared with the reference."""

    word: ClassVar[str] = "rouge_1"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "ROUGE-1"
    order: ClassVar[int] = 50
    kind: ClassVar[str] = "rouge1"


@card
class Rouge2(Rouge):
    """Pairs of words shared with the reference."""

    word: ClassVar[str] = "rouge_2"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "ROUGE-2"
    order: ClassVar[int] = 60
    kind: ClassVar[str] = "rouge2"


@card
class RougeL(Rouge):
    """The longest common subsequence of words."""

    word: ClassVar[str] = "rouge_l"
    revision: ClassVar[int] = 1
    label: ClassVar[str] = "ROUGE-L"
    order: ClassVar[int] = 40
    kind: ClassVar[str] = "rougeL"
