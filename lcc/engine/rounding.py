"""Layers put on their grids in place, all that read one input together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.engine.calibration import InputGroup
from lcc.engine.grids import Grid, output_error, search_scales
from lcc.engine.packing import GroupGrid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Rounding:
    """What became of every layer so far; `quantizer` is a card of that shelf."""

    quantizer: Any
    grids: Mapping[str, Grid]
    quantized: dict[str, Any] = field(default_factory=dict)  # name → methods.quantizers.Quantized
    weight_errors: dict[str, float] = field(default_factory=dict)  # ‖W − Q‖² / ‖W‖²
    output_errors: dict[str, float] = field(default_factory=dict)  # the same of the outputs

    def add(self, group: InputGroup) -> None:
        """Quantize the layers of one input, in place."""
        for part, grid in by_grid(group, self.grids):
            weight = part.weight()
            _require_finite(part, weight)
            quantized = self.quantizer.quantize(weight, part.stats, grid)
            sizes = [layer.out_features for layer in part.layers.values()]
            for (name, layer), own in zip(part.layers.items(), quantized.split(sizes), strict=True):
                self._put(name, layer, own, gram=None if part.stats is None else part.stats.gram)

    def add_alone(self, name: str, layer: Any) -> None:
        """Quantize an embedding or a head, at whose inputs nobody looked, in place."""
        grid, weight = self.grids[name], layer.weight.detach()
        _require_finite(InputGroup({name: layer}, None), weight)
        if self.quantizer.needs is None:
            self._put(name, layer, self.quantizer.quantize(weight, None, grid), gram=None)
            return
        scale, zero = search_scales(weight, grid, None)
        codes = grid.encode(weight, scale, zero)
        self._put(name, layer, GroupGrid(codes, scale, grid.bits, zero), gram=None)

    def _put(self, name: str, layer: Any, quantized: Any, *, gram: Tensor | None) -> None:
        before = layer.weight.detach().float()
        layer.weight.data = quantized.dense().to(layer.weight.dtype)
        change = before - layer.weight.detach().float()
        self.quantized[name] = quantized
        self.weight_errors[name] = _share(change.square().sum(), before.square().sum())
        if gram is not None:
            self.output_errors[name] = _share(
                output_error(change, gram).sum(), output_error(before, gram).sum()
            )


def by_grid(group: InputGroup, grids: Mapping[str, Grid]) -> Iterator[tuple[InputGroup, Grid]]:
    """The group's layers with equal grids together."""
    for grid in dict.fromkeys(grids[name] for name in group.layers):
        alike = {name: layer for name, layer in group.layers.items() if grids[name] == grid}
        yield InputGroup(alike, group.stats), grid


def _require_finite(group: InputGroup, weight: Tensor) -> None:
    if bool(torch.isfinite(weight).all()):
        return
    broken = next(n for n, layer in group.layers.items() if not layer.weight.isfinite().all())
    raise GateError(
        f"quantize: layer {broken!r} holds numbers that are not finite; mend the step before it."
    )


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole.clamp(min=torch.finfo(torch.float32).tiny))
