"""The shelf of metrics, and what its cards share: a mean over samples, words in any language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lcc.data.cleaning import UNIT
from lcc.evaluation.metrics import Need

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


class Mean:
    """A metric whose statistics are two columns, a sum and a count; its score is their ratio."""

    unit: ClassVar[str] = "share"
    needs: ClassVar[Need] = "answers"
    higher_is_better: ClassVar[bool] = True

    def score(self, sums: Floats) -> Floats:
        """The first column over the second; 0 where the second is 0."""
        return mean_of(sums)


def mean_columns(values: Sequence[float]) -> Floats:
    """Columns: the sample's value, one."""
    import numpy as np

    return np.array([[value, 1.0] for value in values]).reshape(len(values), 2)


def mean_of(sums: Floats) -> Floats:
    """Mean over samples."""
    import numpy as np

    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


class Words:
    """A tokenizer for rouge-score: words, or single characters of Chinese and its like."""

    def tokenize(self, text: str) -> list[str]:
        return UNIT.findall(text.lower())
