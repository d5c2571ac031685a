"""The shelf of quantizers: a weight onto a grid that a standard format can store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.statistics import LayerStats

Format = Literal["compressed-tensors", "bitsandbytes"]


@dataclass(frozen=True)
class Grid:
    """What the stage asks for: `group_size` None is one scale per output channel."""

    bits: int
    group_size: int | None
    dtype: str  # of the stored scales, e.g. "bfloat16"


class Quantized(Protocol):
    """One weight on its grid."""

    def dense(self) -> Tensor:
        """(out, in) values exactly as a stranger's reader dequantizes them."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What stands in the checkpoint instead of the weight, by name below the layer."""
        ...


class Quantizer(Protocol):
    """Puts one layer's weight on the grid."""

    revision: ClassVar[int]
    calibrated: ClassVar[bool]  # whether `quantize` reads `stats`
    bits: ClassVar[tuple[int, ...]]
    format: ClassVar[Format]

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: Grid) -> Quantized: ...

    def config(self, grid: Grid, *, skipped: list[str]) -> dict[str, Any]:
        """The `quantization_config` of config.json; `skipped` linear layers stay as they are."""
        ...
