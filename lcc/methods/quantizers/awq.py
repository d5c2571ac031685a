"""Scale up the inputs that matter before rounding (AWQ; Lin et al., 2023, arXiv 2306.00978).

An input's scale is its mean magnitude to a power; of `num_ratios` powers from 0 on, the one whose
rounding changes the layer's outputs least is taken. That error comes from the Gram, so no text is
run and a CPU will do. The range of each group is then searched too, as AWQ clips it.
transformers reads 2, 3, 4 and 8 bits (dense once loaded); vLLM's kernels take symmetric 4 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.compression.packed_format import GroupGrid, integer_config
from lcc.compression.quantization_grid import IntGrid, output_error, search_scales, widest_scales
from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats

MAX_ROWS = 512  # that judge a power: the scales are one for all rows


@card
class Awq:
    word: ClassVar[str] = "awq"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "gram"
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    format: ClassVar[Format] = "compressed-tensors"

    num_ratios: Annotated[int, Field(ge=1, le=100)] = 20

    def smoothing(self, weight: Tensor, stats: LayerStats, grid: IntGrid) -> Tensor:
        """Factors (in,) of the inputs' weights; ones, should no power be better."""
        assert stats.gram is not None, "awq reads the Gram"
        weight = weight[:: -(-len(weight) // MAX_ROWS)]
        best = torch.ones_like(stats.mean_abs)
        least = float("inf")
        for step in range(self.num_ratios):
            scale = _scale(stats.mean_abs, step / self.num_ratios)
            scaled = weight * scale
            rounded = grid.round(scaled, *widest_scales(scaled, grid)) / scale
            error = float(output_error(rounded - weight, stats.gram).sum())
            if error < least:
                least, best = error, scale
        return best

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        assert stats is not None, "awq reads calibration statistics"
        scale, zero = search_scales(weight, grid, stats.gram)
        return GroupGrid(grid.encode(weight, scale, zero), scale, grid.bits, zero)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return integer_config(grids, targets=targets, skipped=skipped)


def _scale(magnitude: Tensor, ratio: float) -> Tensor:
    """Centred around one, so that norms and weights stay in the range of half precision."""
    scale = magnitude.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()
