"""Search each group's scale for the least error where its inputs are large; round to nearest.

The squared error of every input is weighed by its mean square on the calibration text, as the
importance matrices of llama.cpp do it. With `weigh: gram` the error is that of the layer's output.
transformers reads 2, 3, 4 and 8 bits (dense once loaded); vLLM's kernels take symmetric 4 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lcc.compression.packed_format import GroupGrid, integer_config
from lcc.compression.quantization_grid import IntGrid, search_scales
from lcc.config.cards import card
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats


@card
class ScaleSearch:
    word: ClassVar[str] = "scale_search"
    revision: ClassVar[int] = 2
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    format: ClassVar[Format] = "compressed-tensors"

    weigh: Literal["gram", "diagonal"] = "gram"

    @property
    def needs(self) -> Needs:
        return self.weigh

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        assert stats is not None, "scale_search reads calibration statistics"
        importance = stats.gram if self.weigh == "gram" else stats.diagonal
        scale, zero = search_scales(weight, grid, importance)
        return GroupGrid(grid.encode(weight, scale, zero), scale, grid.bits, zero)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return integer_config(grids, targets=targets, skipped=skipped)
