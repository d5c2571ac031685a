"""What `sensitivity` tries on a part of a model: the weights it would have, and the bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lcc.compression.grids import Grid
from lcc.compression.patterns import Pattern
from lcc.compression.pruning import feed_forwards
from lcc.compression.repairing import ridge_repair
from lcc.core.decode import decode_card
from lcc.core.lazy import torch
from lcc.methods.criteria.wanda import Wanda
from lcc.methods.quantizers.gptq import Gptq
from lcc.methods.quantizers.nearest import Nearest
from lcc.stages._grids import GROUPS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.compression.units import Unit
    from lcc.engine.statistics import LayerStats
    from lcc.stages._calibrated import Needs

Action = Literal["w8", "w4", "w3", "w4_gptq", "sparse50", "sparse24", "width25"]
NEEDS: dict[str, Needs] = {"w4_gptq": "gram", "width25": "gram", "sparse50": "diagonal",
                           "sparse24": "diagonal"}  # fmt: skip
BITS = {"w8": 8, "w4": 4, "w3": 3, "w4_gptq": 4}
PATTERNS = {"sparse50": "unstructured", "sparse24": "2:4"}
DAMPING = 0.01


@dataclass(frozen=True)
class Change:
    """Other weights for some layers, and by how many bytes what is stored would grow."""

    weights: dict[Linear, Tensor]
    bytes: int


class Actions:
    """Applies actions to layers of one model, whose inputs look like `stats`."""

    def __init__(self, model: Any, stats: Mapping[str, LayerStats] | None, *, dtype: str) -> None:
        self.stats, self.dtype = stats, dtype
        self.width = torch.finfo(getattr(torch, dtype)).bits // 8
        self.model = model
        self._units: dict[str, Unit] | None = None

    def change(self, action: str, layers: Mapping[str, Linear]) -> Change | None:
        """What the action makes of these layers; None where it does not apply to any."""
        if action in BITS:
            return self._rounded(action, layers)
        if action in PATTERNS:
            return self._pruned(PATTERNS[action], layers)
        return self._narrowed(layers)

    def _rounded(self, action: str, layers: Mapping[str, Linear]) -> Change:
        common = math.gcd(*(layer.in_features for layer in layers.values()))
        group = next((size for size in GROUPS if common % size == 0), None)
        grid = Grid(BITS[action], group, self.dtype)
        quantizer: Any = decode_card(Gptq if action.endswith("gptq") else Nearest, {})
        weights, stored = {}, 0
        for name, layer in layers.items():
            found = quantizer.quantize(layer.weight.detach(), self._look(name, action), grid)
            weights[layer] = found.dense()
            stored += sum(tensor.nbytes for tensor in found.tensors().values())
        return Change(weights, stored - self.width * _size(layers.values()))

    def _pruned(self, word: str, layers: Mapping[str, Linear]) -> Change | None:
        """Zeros are stored like any weight: no byte is saved."""
        pattern, wanda = Pattern(word, 0.5), Wanda()
        weights = {}
        for name, layer in layers.items():
            if layer.in_features % pattern.unit:
                return None
            weight = layer.weight.detach()
            weights[layer] = weight * pattern.mask(wanda.score(weight, self._look(name, "sparse")))
        return Change(weights, 0)

    def _narrowed(self, layers: Mapping[str, Linear]) -> Change | None:
        """A quarter of the channels fewer; what reads the rest is repaired, as `width` does."""
        weights, entries = {}, 0
        for unit in self.units.values():
            for name, layer in unit.consumers.items():
                if name not in layers:
                    continue
                weights[layer], lost = self._without_channels(name, layer)
                one = sum(p.numel() // p.shape[dim] for m in unit.members
                          for p, dim in m.parameters())  # fmt: skip
                entries += lost * one
        return Change(weights, -self.width * entries) if weights else None

    def _without_channels(self, name: str, layer: Linear) -> tuple[Tensor, int]:
        stats = self._look(name, "width25")
        assert stats is not None and stats.gram is not None
        weight = layer.weight.detach()
        importance = Wanda().score(weight, stats).float().square().sum(dim=0)
        num_kept = round(0.75 * len(importance))
        kept = importance.topk(num_kept).indices.sort().values
        new = torch.zeros_like(weight)
        new[:, kept] = ridge_repair(weight, stats.gram, kept, damping=DAMPING)
        return new, len(importance) - num_kept

    @property
    def units(self) -> dict[str, Unit]:
        if self._units is None:
            self._units = {unit.name: unit for unit in feed_forwards(self.model)}
        return self._units

    def _look(self, name: str, action: str) -> LayerStats | None:
        if action in BITS and NEEDS.get(action) is None:
            return None
        assert self.stats is not None, f"{action} reads statistics"
        return self.stats[name]


def _size(layers: Any) -> int:
    return sum(layer.weight.numel() for layer in layers)
