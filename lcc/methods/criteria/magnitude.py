"""Keep large weights, whatever their input (Han et al., 2015; arXiv 1506.02626)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.core.decode import card

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.statistics import LayerStats


@card
class Magnitude:
    revision: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        return weight.abs()
