"""Keep channels whose consumer's weights are large where the input is large, on average.

Wanda-sp, the structured form of Wanda in the paper on FLAP (arXiv 2312.11983): a channel matters as
much as the mean of |w| · ‖x‖ over its column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class WandaSp:
    word: ClassVar[str] = "wanda_sp"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        assert stats is not None, "wanda_sp reads calibration statistics"
        return weight.abs() * stats.input_norm  # (out, in) * (in,)

    def channels(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        return self.score(weight, stats).float().mean(dim=0)  # (in,)
