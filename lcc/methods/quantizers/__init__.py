"""The shelf of quantizers: weights onto a grid that a standard format can store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from lcc.compression.quantization_grid import IntGrid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lcc.calibration.statistics import LayerStats

Format = Literal["compressed-tensors", "bitsandbytes"]
Needs = Literal["gram", "diagonal"]


class Quantized(Protocol):
    """A weight on its grid."""

    def dense(self) -> Tensor:
        """(out, in) values exactly as a stranger's reader dequantizes them."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What stands in the checkpoint instead of the weight, by name below the layer."""
        ...

    def split(self, sizes: Sequence[int]) -> Sequence[Quantized]:
        """The parts of this many rows each."""
        ...


class Quantizer(Protocol):
    """Puts the stacked weights of the layers that read one input on the grid."""

    revision: ClassVar[int]
    bits: ClassVar[tuple[int, ...]]
    format: ClassVar[Format]

    @property
    def needs(self) -> Needs | None:
        """What `quantize` reads of `stats`; may be a ClassVar."""
        ...

    def quantize(self, weight: Tensor, stats: LayerStats | None, grid: IntGrid) -> Quantized: ...

    def config(
        self, grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str]
    ) -> dict[str, Any]:
        """config.json's `quantization_config`: layers by name, all `targets` but the `skipped`."""
        ...


@runtime_checkable
class Smoother(Protocol):
    """A quantizer that first moves scales from the inputs into the weights."""

    def smoothing(self, weight: Tensor, stats: LayerStats, grid: IntGrid) -> Tensor:
        """Factors (in,) of the inputs' weights; the inputs are divided by them."""
        ...
