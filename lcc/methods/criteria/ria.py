"""Keep weights that are a large share of their row and column, where their input is large.

Relative importance and activations (RIA; Zhang et al., 2024; "Plug-and-Play", arXiv 2402.10013,
equation 4): |w| / Σ over its row + |w| / Σ over its column, times the input's norm to a power.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.methods.criteria import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Ria:
    word: ClassVar[str] = "ria"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"

    power: Annotated[float, Field(ge=0)] = 0.5  # of the input's norm

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        assert stats is not None, "ria reads calibration statistics"
        size = weight.abs()
        tiny = torch.finfo(size.dtype).tiny  # A row of zeros has no share to divide.
        of_row = size / size.sum(dim=1, keepdim=True).clamp(min=tiny)
        of_column = size / size.sum(dim=0, keepdim=True).clamp(min=tiny)
        return (of_row + of_column) * stats.input_norm.to(size) ** self.power
