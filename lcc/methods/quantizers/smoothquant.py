"""8-bit weights and inputs, outliers moved into the weights (SmoothQuant, arXiv 2211.10438).

Xiao et al., 2022. An input channel is divided by max|x|^strength / max|w|^(1 − strength). Weights
have a scale per channel, inputs one per token, found as the model runs: compressed-tensors' W8A8,
which GPU engines run in integers; transformers rounds the inputs and multiplies in floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.compression.packed_format import GroupGrid, integer_config
from lcc.compression.quantization_grid import IntGrid, widest_scales
from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class SmoothQuant:
    word: ClassVar[str] = "smoothquant"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "diagonal"
    bits: ClassVar[tuple[int, ...]] = (8,)
    format: ClassVar[Format] = "compressed-tensors"
    rounds_inputs: ClassVar[bool] = True

    strength: Annotated[float, Field(ge=0, le=1)] = 0.5

    def smoothing(self, weight: Tensor, stats: LayerStats, grid: IntGrid) -> Tensor:
        """Factors (in,) of the inputs' weights."""
        largest = weight.abs().amax(dim=0)
        scale = stats.max_abs.pow(self.strength) / largest.pow(1 - self.strength)
        usable = (stats.max_abs > 0) & (largest > 0)
        return torch.where(usable, scale, torch.ones_like(scale))

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        scale, zero = widest_scales(weight, grid)
        codes = grid.encode(weight, scale, zero)
        return GroupGrid(codes, scale, grid.bits, zero, packs=False)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return integer_config(grids, targets=targets, skipped=skipped, rounds_inputs=True)
