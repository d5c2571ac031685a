"""8-bit weights with a scale per channel (LLM.int8; Dettmers et al., 2022), by bitsandbytes.

As it runs, bitsandbytes rounds the inputs to 8 bits per token too, but for the channels in which
one is above 6; what is measured here has float inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lcc.compression.quantization_grid import IntGrid
from lcc.config.cards import card
from lcc.core.lazy import bitsandbytes, torch
from lcc.methods.quantizers import Format, Needs, Quantized

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats

OUTLIER = 6.0  # inputs above it are multiplied in half precision


@dataclass(frozen=True)
class Rows:
    codes: Tensor  # (out, in) int8
    largest: Tensor  # (out,) float32: max|w| of each row

    def dense(self) -> Tensor:
        dense: Tensor = bitsandbytes.functional.int8_vectorwise_dequant(self.codes, self.largest)
        return dense

    def tensors(self) -> dict[str, Tensor]:
        row_by_row = torch.tensor(0, dtype=torch.uint8)
        return {"weight": self.codes, "SCB": self.largest, "weight_format": row_by_row}

    def split(self, sizes: Sequence[int]) -> list[Rows]:
        parts = torch.split(self.codes, list(sizes)), torch.split(self.largest, list(sizes))
        return [Rows(codes, largest) for codes, largest in zip(*parts, strict=True)]


@card
class BnbInt8:
    word: ClassVar[str] = "bnb_int8"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = None
    bits: ClassVar[tuple[int, ...]] = (8,)
    format: ClassVar[Format] = "bitsandbytes"

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        codes, largest, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
        return Rows(codes, largest)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": False,
            "load_in_8bit": True,
            "llm_int8_threshold": OUTLIER,
            "llm_int8_skip_modules": skipped,
        }
