"""Layers put on their grids in place, all that read one input together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from lcc.compression.columns import layer_error
from lcc.compression.grids import Grid, search_scales
from lcc.compression.packing import GroupGrid
from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.engine.calibration import InputGroup
from lcc.engine.keeping import Facts

if TYPE_CHECKING:
    from torch import Tensor


class Rounding:
    """Rounds with `quantizer`, a card of that shelf, and notes what became of every layer.

    `facts` gets the errors and bytes of a layer, `packed` what is stored instead of its weight.
    """

    def __init__(
        self,
        quantizer: Any,
        grids: Mapping[str, Grid],
        *,
        facts: Facts,
        packed: MutableMapping[str, dict[str, Tensor]],
    ) -> None:
        self.quantizer, self.grids, self.facts, self.packed = quantizer, grids, facts, packed

    def add(self, group: InputGroup) -> None:
        """Quantize the layers of one input, in place."""
        for part, grid in by_grid(group, self.grids):
            weight = part.weight()
            _require_finite(part, weight)
            quantized = self.quantizer.quantize(weight, part.stats, grid)
            sizes = [layer.out_features for layer in part.layers.values()]
            for (name, layer), own in zip(part.layers.items(), quantized.split(sizes), strict=True):
                self.put(name, layer, own, gram=None if part.stats is None else part.stats.gram)

    def add_alone(self, name: str, layer: Any) -> None:
        """Quantize an embedding or a head, at whose inputs nobody looked, in place."""
        grid, weight = self.grids[name], layer.weight.detach()
        _require_finite(InputGroup({name: layer}, None), weight)
        if self.quantizer.needs is None:
            self.put(name, layer, self.quantizer.quantize(weight, None, grid))
            return
        scale, zero = search_scales(weight, grid, None)
        self.put(name, layer, GroupGrid(grid.encode(weight, scale, zero), scale, grid.bits, zero))

    def put(self, name: str, layer: Any, quantized: Any, *, gram: Tensor | None = None) -> None:
        """Set a layer to its grid values, in place, and note what that changed."""
        before = layer.weight.detach().float()
        layer.weight.data = quantized.dense().to(layer.weight.dtype)
        change = before - layer.weight.detach().float()
        tensors = quantized.tensors()
        fact = {
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "weight_error": _share(change.square().sum(), before.square().sum()),
        }
        if gram is not None:
            fact["output_error"] = layer_error(change, before, gram)
        self.facts[name], self.packed[name] = fact, tensors


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
