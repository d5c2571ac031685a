"""Keep channels that fluctuate: what a constant one gave, a bias can give (FLAP).

An et al., 2023, arXiv 2312.11983: the variance of an input times its column's squared norm. Goes
with `repair: bias`, which puts the lost channels' mean output into the consumer's bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Flap:
    word: ClassVar[str] = "flap"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        assert stats is not None, "flap reads calibration statistics"
        return weight.square() * stats.variance  # (out, in) * (in,)

    def channels(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        return self.score(weight, stats).float().sum(dim=0)  # (in,)
