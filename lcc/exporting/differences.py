"""How two tables of logits differ: by how much of their spread, and where another is in front."""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]

FORBIDDEN = -1e30
MOST_NEVER_SAID = 4  # tokens that an engine forbids, such as padding


class Errors:
    """Squares of what logits are off by, and of how they spread, each row around its mean."""

    def __init__(self) -> None:
        self.wrong = self.spread = self.count = 0.0

    def add(self, expected: Matrix, got: Matrix) -> None:
        """Rows of both, (rows, vocabulary)."""
        centred = expected - expected.mean(-1, keepdims=True)
        difference = got - got.mean(-1, keepdims=True) - centred
        self.wrong += float(np.square(difference, dtype=np.float64).sum())
        self.spread += float(np.square(centred, dtype=np.float64).sum())
        self.count += centred.size

    @property
    def share(self) -> float:
        """The root mean square of what they are off by, of their spread."""
        return float(np.sqrt(self.wrong / max(self.spread, 1e-300)))

    @property
    def deviation(self) -> float:
        """The spread itself."""
        return float(np.sqrt(self.spread / max(self.count, 1.0)))


def alike(expected: Matrix, got: Matrix) -> tuple[Matrix, Matrix]:
    """Without columns that only one has: rows beyond the vocabulary, and tokens it never says."""
    width = min(expected.shape[-1], got.shape[-1])
    expected, got = expected[..., :width].astype(np.float32), got[..., :width].astype(np.float32)
    never = (got < FORBIDDEN).all(axis=tuple(range(got.ndim - 1)))
    if 0 < never.sum() <= MOST_NEVER_SAID:
        return expected[..., ~never], got[..., ~never]
    return expected, got


def preferences(expected: Matrix, got: Matrix) -> list[float]:
    """By how much the source prefers its own choice to the export's, where they differ."""
    mine, other = expected.argmax(-1), got.argmax(-1)
    rows = np.flatnonzero(mine != other)
    return [float(expected[r, mine[r]] - expected[r, other[r]]) for r in rows]
