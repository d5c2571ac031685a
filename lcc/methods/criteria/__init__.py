"""The shelf of criteria: how much a weight matters.

A channel matters as much as the norm of its consumer's column of scores; a head as much as the
norm over all its columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.statistics import LayerStats


class Criterion(Protocol):
    """Scores single weights; the higher, the more it should stay."""

    revision: ClassVar[int]
    calibrated: ClassVar[bool]  # whether `score` reads `stats`

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """(out, in) scores of an (out, in) weight whose input looks like `stats`."""
        ...
