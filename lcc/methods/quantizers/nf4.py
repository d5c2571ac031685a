"""4-bit NormalFloat with doubly quantized scales (QLoRA; Dettmers et al., 2023), by bitsandbytes.

Double quantization is not a choice: without it bitsandbytes 0.50 ruins a saved model on CPU.
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

BLOCK = 64


@dataclass(frozen=True)
class NormalFloat:
    codes: Tensor  # (out · in / 2, 1) uint8
    state: Any  # bitsandbytes' QuantState

    def dense(self) -> Tensor:
        dense: Tensor = bitsandbytes.functional.dequantize_4bit(self.codes, self.state)
        return dense

    def tensors(self) -> dict[str, Tensor]:
        state = self.state.as_dict(packed=True)
        return {"weight": self.codes, **{f"weight.{name}": value for name, value in state.items()}}

    def split(self, sizes: Sequence[int]) -> list[NormalFloat]:
        assert len(sizes) == 1, "a state of bitsandbytes belongs to one layer"
        return [self]


@card
class Nf4:
    word: ClassVar[str] = "nf4"
    revision: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = None
    bits: ClassVar[tuple[int, ...]] = (4,)
    format: ClassVar[Format] = "bitsandbytes"
    block: ClassVar[int] = BLOCK  # its CPU kernel reads whole blocks per row

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized:
        codes, state = bitsandbytes.functional.quantize_4bit(
            weight.to(getattr(torch, grid.dtype)).contiguous(),
            blocksize=BLOCK,
            compress_statistics=True,
            quant_type="nf4",
        )
        return NormalFloat(codes, state)

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        (grid,) = set(grids.values())
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": grid.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": skipped,
        }
