"""Which layers read one tensor, and the running sums of every such input."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lcc.core.errors import DataError
from lcc.engine.statistics import LayerStats, Sums

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.engine.padding import Padding
    from lcc.parts.dist import Dist


class Tally:
    """Sums of every distinct input; a layer that reads a tensor already seen shares its sums."""

    def __init__(self, *, gram: bool, dist: Dist) -> None:
        self.gram, self.dist = gram, dist
        self.owners: dict[str, str] = {}  # layer → the first layer that read the same tensor
        self.sums: dict[str, Sums] = {}
        self.done: dict[str, LayerStats] = {}
        # Held weakly: an id means its tensor only while that lives.
        self.seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def note(self, name: str, x: Tensor, _padding: Padding) -> None:
        """Remember which layers read one tensor."""
        if name in self.owners:
            return
        known = self.seen.get(id(x))
        if known is None or known[0]() is not x:
            known = (weakref.ref(x), name)
            self.seen[id(x)] = known
        self.owners[name] = known[1]

    def see(self, name: str, x: Tensor, padding: Padding) -> None:
        self.note(name, x, padding)
        if self.owners[name] == name:
            sums = self.sums.setdefault(name, Sums(gram=self.gram))
            sums.add(padding.removed(name, x))

    def groups(self, layers: Mapping[str, Linear]) -> list[dict[str, Linear]]:
        """`layers` by owner, in the order in which they first ran."""
        ran = sorted(layers, key=list(self.owners).index)
        groups: dict[str, dict[str, Linear]] = {}
        for name in ran:
            groups.setdefault(self.owners[name], {})[name] = layers[name]
        return list(groups.values())

    def finish(self, layers: Mapping[str, Linear]) -> dict[str, LayerStats]:
        """Statistics of these layers, whose inputs have all been seen."""
        idle = next((name for name in layers if name not in self.owners), None)
        if idle is not None:
            raise DataError(
                f"calibration: layer {idle!r} is never run on this text (an expert without tokens,"
                " or a weight used past its layer); take a method without calibration."
            )
        self._forget()
        for owner in dict.fromkeys(self.owners[name] for name in layers):
            if owner in self.sums:
                sums = self.sums.pop(owner)
                sums.reduce(self.dist)
                self.done[owner] = sums.stats(owner)
        found = {name: self.done[self.owners[name]] for name in layers}
        self._forget()
        return found

    def _forget(self) -> None:
        """Drop finished statistics that no later layer can share: their tensors are gone."""
        self.seen = {key: known for key, known in self.seen.items() if known[0]() is not None}
        alive = {owner for _, owner in self.seen.values()}
        self.done = {owner: stats for owner, stats in self.done.items() if owner in alive}
