"""Keep large weights, whatever their input (Han et al., 2015; arXiv 1506.02626)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Magnitude:
    word: ClassVar[str] = "magnitude"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = None

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        return weight.abs()
