"""Keep weights that are large where their input is large (Wanda; Sun et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Wanda:
    word: ClassVar[str] = "wanda"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        assert stats is not None, "wanda reads calibration statistics"
        return weight.abs() * stats.input_norm  # (out, in) * (in,)
