"""chrF, the F-score of character n-grams (Popović, 2015), as sacreBLEU computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats

BETA = 2


@card
class Chrf:
    """Character 6-grams; `word_order: 2` makes it chrF++."""

    word: ClassVar[str] = "chrf"
    label: ClassVar[str] = "chrF"
    order: ClassVar[int] = 20
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "chrF"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    word_order: Annotated[int, Field(ge=0, le=2)] = 0

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: output, reference and matching n-grams of each order, three by three."""
        import numpy as np

        outputs = [answer.output or "" for answer in answers]
        references = [[answer.reference for answer in answers]]
        counts = self._scorer()._extract_corpus_statistics(outputs, references)
        return np.asarray(counts, dtype=np.float64).reshape(len(answers), -1)

    def score(self, sums: Floats) -> Floats:
        """F-score of the precisions and recalls averaged over the orders that occur, 0 to 100."""
        import numpy as np

        outputs, references, matches = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        occurs = (outputs > 0) & (references > 0)
        orders = np.maximum(occurs.sum(axis=-1), 1)
        zeros = np.zeros_like(matches)
        precision = np.divide(matches, outputs, out=zeros.copy(), where=occurs).sum(-1) / orders
        recall = np.divide(matches, references, out=zeros.copy(), where=occurs).sum(-1) / orders
        below = BETA**2 * precision + recall
        above = (1 + BETA**2) * precision * recall
        return np.asarray(100 * np.divide(above, below, out=np.zeros_like(above), where=below > 0))

    def signature(self, language: str) -> str:
        scorer = self._scorer()
        scorer.corpus_score(["a"], [["a"]])  # The signature counts references: it needs some.
        return f"chrF|{scorer.get_signature()}"

    def _scorer(self) -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=self.word_order, beta=BETA)
