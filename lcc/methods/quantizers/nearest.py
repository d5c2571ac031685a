"""Round every weight to the nearest point of its group's grid, from its least to its largest.

transformers reads 2, 3, 4 and 8 bits (dense once loaded); vLLM's kernels take symmetric 4 and 8.
2 and 3 bits rounded so usually ruin a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lcc.compression.packed_format import GroupGrid, integer_config
from lcc.compression.quantization_grid import IntGrid, widest_scales
from lcc.config.cards import card
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class Nearest:
    word: ClassVar[str] = "nearest"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = None
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    format: ClassVar[Format] = "compressed-tensors"

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        scale, zero = widest_scales(weight, grid)
        return GroupGrid(grid.encode(weight, scale, zero), scale, grid.bits, zero)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return integer_config(grids, targets=targets, skipped=skipped)
