"""Perplexity: e to the mean negative log-likelihood per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.evaluation.metrics import Need, Prediction

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


@card
class Perplexity:
    """Per token of the model's own tokenizer: comparable between models of one vocabulary only."""

    word: ClassVar[str] = "perplexity"
    label: ClassVar[str] = "perplexity"
    order: ClassVar[int] = 170
    revision: ClassVar[int] = 1
    unit: ClassVar[str] = "perplexity"
    needs: ClassVar[Need] = "likelihood"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, answers: Sequence[Prediction], *, language: str) -> Floats:
        """Columns: nats, tokens."""
        import numpy as np

        return np.array([[answer.nats, answer.num_tokens] for answer in answers], dtype=float)

    def score(self, sums: Floats) -> Floats:
        """exp(nats / tokens)."""
        import numpy as np

        return np.asarray(np.exp(sums[..., 0] / np.maximum(sums[..., 1], 1)))

    def signature(self, language: str) -> str:
        return "perplexity|per:token|vocabulary:the model's own"
