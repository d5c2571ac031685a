"""Quantization of layers onto grids, and mixed precision: bits for every layer under an average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lcc.calibration.calibrate import InputGroup
from lcc.calibration.resume import Facts
from lcc.compression.obs_solver import layer_error
from lcc.compression.packed_format import GroupGrid
from lcc.compression.quantization_grid import IntGrid, output_error, search_scales
from lcc.core.errors import GateError, RecipeError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


MAX_STATES = 20_000  # of the table; more layers' sizes are rounded up to this fineness


def note_changes(groups: Any, grid: IntGrid, *, offered: Sequence[int]) -> None:
    """Put into `groups.facts`, by the first layer of each input, what each number of bits costs."""
    for group in groups:
        groups.facts[next(iter(group.layers))] = {
            "layers": list(group.layers),
            "size": int(group.weight().numel()),
            "errors": [output_change(group, replace(grid, bits=bits)) for bits in offered],
        }


def mixed_grids(facts: Facts, grid: IntGrid, *, offered: Sequence[int], average: float) -> dict[str, IntGrid]:
    """Each layer's grid: layers that read one input get equal bits, as fused kernels need them.

    Their error is the share of their outputs that rounding changes on the calibration text, with
    searched scales, whatever the quantizer; `average` counts codes, not scales. Layers of one input
    count once: on SmolLM2 at 4.5 bits, perplexity 31.7; 32.0 when each counts; 32.8 at 4 bits.
    """
    known = [facts[name] for name in sorted(facts)]
    errors, sizes = [fact["errors"] for fact in known], [fact["size"] for fact in known]
    chosen = cheapest(errors, sizes, offered, average=average)
    return {
        name: replace(grid, bits=bits)
        for fact, bits in zip(known, chosen, strict=True)
        for name in fact["layers"]
    }


def output_change(group: InputGroup, grid: IntGrid) -> float:
    """tr(ΔW·G·ΔWᵀ) / tr(W·G·Wᵀ) of the stacked layers, rounding with searched scales."""
    assert group.stats is not None and group.stats.gram is not None, "mixing bits reads the Gram"
    weight, gram = group.weight().float(), group.stats.gram
    change = grid.round(weight, *search_scales(weight, grid, group.stats.diagonal)) - weight
    lost, whole = output_error(change, gram).sum(), output_error(weight, gram).sum()
    return float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))


def cheapest(
    errors: Sequence[Sequence[float]], sizes: Sequence[int], offered: Sequence[int], *, average: float
) -> list[int]:
    """The bits of each layer with the least sum of errors within `average` bits per weight.

    `errors[i][k]` is layer i's with `offered[k]` bits. A knapsack, solved exactly by dynamic
    programming over the budget; where sizes have no large common divisor they are rounded up, so
    that the budget holds and the rest is not lost by more than one part in MAX_STATES per layer.
    """
    limit = average * sum(sizes) * (1 + 1e-12)
    unit = max(math.gcd(*(n * b for n in sizes for b in offered)), math.ceil(limit / MAX_STATES))
    budget = int(limit // unit)
    costs = [[-(-n * b // unit) for b in offered] for n in sizes]
    # The least error of the layers so far at this cost or less.
    least = torch.zeros(budget + 1, dtype=torch.float64)
    picks = []
    for row, cost in zip(errors, costs, strict=True):
        options = least.new_full((len(offered), budget + 1), torch.inf)
        for k, (error, price) in enumerate(zip(row, cost, strict=True)):
            if price <= budget:
                options[k, price:] = least[: budget + 1 - price] + error
        least, pick = options.min(dim=0)
        picks.append(pick.to(torch.int8))
    if not bool(least[budget].isfinite()):
        raise RecipeError(
            f"quantize.average_bits: {average:g} is less than the layers can be mixed to; raise it a little."
        )
    left, chosen = budget, []
    for pick, cost in zip(reversed(picks), reversed(costs), strict=True):
        best = int(pick[left])
        chosen.append(offered[best])
        left -= cost[best]
    return chosen[::-1]


# Layers put on their grids in place, all that read one input together.


class Rounding:
    """Rounds with `quantizer`, a card of that shelf, and notes what became of every layer.

    `facts` gets the errors and bytes of a layer, `packed` what is stored instead of its weight.
    """

    def __init__(
        self,
        quantizer: Any,
        grids: Mapping[str, IntGrid],
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


def by_grid(group: InputGroup, grids: Mapping[str, IntGrid]) -> Iterator[tuple[InputGroup, IntGrid]]:
    """The group's layers with equal grids together."""
    for grid in dict.fromkeys(grids[name] for name in group.layers):
        alike = {name: layer for name, layer in group.layers.items() if grids[name] == grid}
        yield InputGroup(alike, group.stats), grid


def _require_finite(group: InputGroup, weight: Tensor) -> None:
    if bool(torch.isfinite(weight).all()):
        return
    broken = next(n for n, layer in group.layers.items() if not layer.weight.isfinite().all())
    raise GateError(f"quantize: layer {broken!r} holds numbers that are not finite; mend the step before it.")


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole.clamp(min=torch.finfo(torch.float32).tiny))
