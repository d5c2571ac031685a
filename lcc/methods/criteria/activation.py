"""Keep weights whose input is active on average, as channels in Minitron (arXiv 2407.14679)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Activation:
    word: ClassVar[str] = "activation"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        assert stats is not None, "activation reads calibration statistics"
        return weight.abs() * stats.mean_abs  # (out, in) * (in,)
