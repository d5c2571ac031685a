"""Round column after column, and let later columns make up for the errors (GPTQ).

Frantar et al., 2022, arXiv 2210.17323, over grids that scale search chose for the original layout:
the order of solving is a permutation only, so that what is stored is plain group quantization.
With a `pattern` the same pass also prunes (SparseGPT's joint mask and quantization).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.compression.obs_solver import (
    BLOCK,
    Levels,
    factorize,
    quotas,
    row_energies,
    solve_columns,
    spaced_rows,
)
from lcc.compression.packed_format import GroupGrid, integer_config
from lcc.compression.quantization_grid import IntGrid, search_scales
from lcc.compression.sparsity import Pattern
from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats

JUDGED_ROWS = 48


@card
class Gptq:
    """`act_order`: inputs with most energy first. Rounds plainly where that turns out better."""

    word: ClassVar[str] = "gptq"
    revision: ClassVar[int] = 2
    needs: ClassVar[Needs | None] = "gram"
    bits: ClassVar[tuple[int, ...]] = (2, 3, 4, 8)
    format: ClassVar[Format] = "compressed-tensors"

    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    act_order: bool = True
    block_size: Annotated[int, Field(ge=32, multiple_of=32)] = BLOCK
    pattern: Literal["dense", "unstructured", "2:4", "4:8"] = "dense"
    sparsity: Annotated[float, Field(gt=0, le=0.6)] = 0.5  # of the pattern `unstructured`

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        assert stats is not None and stats.gram is not None, "gptq reads Grams"
        scale, zero = search_scales(self._likely(weight, stats.diagonal), grid, stats.diagonal)
        codes = self._codes(weight, stats.gram, grid, scale, zero)
        solved = GroupGrid(codes, scale, grid.bits, zero)
        if self.pattern != "dense":
            return solved
        # A few rows tell: all would cost as much as the pass.
        some = spaced_rows(weight, JUDGED_ROWS)
        few, points = weight[some], None if zero is None else zero[some]
        sample = GroupGrid(codes[some], scale[some], grid.bits, points).dense().float()
        plain = grid.round(few, scale[some], points)
        lost, otherwise = row_energies(torch.cat([sample - few, plain - few]), stats.gram).chunk(2)
        if float(lost.sum()) <= float(otherwise.sum()):
            return solved
        return GroupGrid(grid.encode(weight, scale, zero), scale, grid.bits, zero)

    def _likely(self, weight: Tensor, diagonal: Tensor) -> Tensor:
        """What the grid is for: of a weight that will be pruned, about what Wanda would keep."""
        if self.pattern == "dense":
            return weight
        return weight * Pattern(self.pattern, self.sparsity).mask(weight.square() * diagonal)

    def _codes(
        self, weight: Tensor, gram: Tensor, grid: IntGrid, scale: Tensor, zero: Tensor | None
    ) -> Tensor:
        asked = Pattern(self.pattern, self.sparsity)
        factor = factorize(
            gram, damping=self.damping, order="falling" if self.act_order else "layout", unit=asked.unit
        )
        middle = torch.zeros_like(scale) if zero is None else zero
        choose = None
        if self.pattern == "unstructured":
            choose = quotas(
                weight,
                factor.costs,
                factor.order,
                patterns=[asked],
                sizes=[len(weight)],
                scope="row",
                block_size=self.block_size,
            ).choose
        return solve_columns(
            weight,
            factor,
            levels=Levels(scale, middle, grid.lowest, grid.highest),
            choose=choose,
            pattern=asked.groups,
            block_size=self.block_size,
        )

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return integer_config(grids, targets=targets, skipped=skipped)
