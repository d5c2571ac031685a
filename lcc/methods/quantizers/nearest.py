"""Round every weight to the nearest point of its group's grid, from −max|w| to max|w|."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lcc.core.decode import card
from lcc.core.lazy import torch
from lcc.engine.packing import GroupGrid, compressed_tensors_config
from lcc.methods.quantizers import Format, Grid, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.statistics import LayerStats


@card
class Nearest:
    revision: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False
    bits: ClassVar[tuple[int, ...]] = (4, 8)
    format: ClassVar[Format] = "compressed-tensors"

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: Grid) -> Quantized:
        num_outputs, num_inputs = weight.shape
        groups = weight.float().view(num_outputs, -1, grid.group_size or num_inputs)
        lowest, highest = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
        largest = groups.abs().amax(dim=-1)  # (out, groups)
        # Codes are chosen for the scale as stored; a group of zeros still needs a scale above 0.
        scale = (largest / ((highest - lowest) / 2)).clamp(min=torch.finfo(torch.float16).tiny)
        scale = scale.to(getattr(torch, grid.dtype))
        codes = (groups / scale.float()[..., None]).round().clamp(lowest, highest)
        return GroupGrid(codes.to(torch.int8).view(num_outputs, num_inputs), scale, grid.bits)

    def config(self, grid: Grid, *, skipped: list[str]) -> dict[str, Any]:
        return compressed_tensors_config(grid.bits, grid.group_size, skipped=skipped)
