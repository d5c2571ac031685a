"""Token F1: how many words an answer and its reference share (Rajpurkar et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card
from lcc.methods.metrics._overlap import mean_columns, mean_of
from lcc.methods.metrics._squad import f1
from lcc.parts.metrics import Answer, Need

if TYPE_CHECKING:
    from lcc.parts.metrics import Floats


@card
class TokenF1:
    """SQuAD's F1 over bags of words; of Chinese, over characters."""

    word: ClassVar[str] = "token_f1"
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
