"""What metrics of overlapping words share: a mean over answers, and words in any language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcc.data.cleaning import UNIT

if TYPE_CHECKING:
    from lcc.evaluation.metrics import Floats


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
