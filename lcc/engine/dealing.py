"""The layers of one block dealt to several processes, and what each changed given to all."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from lcc.parts.tensor_files import raw_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

    from lcc.parts.dist import Dist

T = TypeVar("T")


def dealt(groups: Sequence[T], costs: Sequence[float], dist: Dist) -> list[T]:
    """This process's share: the costliest goes first, each to whoever has least."""
    loads = [0.0] * dist.world_size
    mine = set()
    for i in sorted(range(len(groups)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += costs[i]
        if rank == dist.rank:
            mine.add(i)
    return [group for i, group in enumerate(groups) if i in mine]


def solving_cost(layers: Mapping[str, Linear]) -> float:
    """Multiplications to factor the Gram of these layers' input and to sweep over their weights."""
    width = next(iter(layers.values())).in_features
    rows = sum(layer.out_features for layer in layers.values())
    return float(width) ** 2 * (width + rows)


class Shared:
    """Parameters that must be equal in all processes again once every one has changed its share."""

    def __init__(self, modules: Iterable[Module], dist: Dist) -> None:
        found = [p for module in modules for p in module.parameters()]
        self.parameters = list({id(p): p for p in found}.values()) if dist.world_size > 1 else []
        self.dist = dist
        self.before = [_fingerprint(p) for p in self.parameters]

    def settle(self) -> None:
        """Give everybody what each process changed; nothing may be changed by two."""
        if not self.parameters:
            return
        changed = [float(_fingerprint(p) != b) for p, b in self._pairs()]
        changers = self.dist.sum(changed)
        owners = self.dist.sum([c * self.dist.rank for c in changed])
        assert max(changers) <= 1, "two processes changed one parameter"
        for parameter, changer, owner in zip(self.parameters, changers, owners, strict=True):
            if changer:
                self.dist.broadcast_([parameter.data], source=int(owner))

    def _pairs(self) -> Iterable[tuple[Tensor, int]]:
        return zip(self.parameters, self.before, strict=True)


def _fingerprint(tensor: Tensor) -> int:
    return zlib.crc32(raw_bytes(tensor.detach().cpu().contiguous()))
