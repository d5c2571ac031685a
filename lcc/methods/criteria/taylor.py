"""Keep what the loss would notice: |weight · gradient|, summed over all that goes with a channel.

First-order Taylor expansion of the task's loss (Molchanov et al., 2019, arXiv 1906.10771; over
coupled layers as in LLM-Pruner, Ma et al., 2023, arXiv 2305.11627).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Taylor:
    word: ClassVar[str] = "taylor"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = None

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        raise RecipeError("criterion: taylor reads gradients, which only width takes; choose wanda or ria.")

    def score_by_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs()
