"""Keys and values of what was read already, for prompts that begin as it did.

A conversation's next turn begins with all that was said before, and prompts of one task with the
same instructions and demonstrations: only what follows must be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Layers = list[tuple[Tensor, Tensor]]

LEAST = 8  # tokens in common that are worth a copy
MOST_KEPT = 64  # texts


@dataclass(eq=False)
class Kept:
    """A text that was read; `layers` are keys and values (heads, tokens, head size) of each."""

    ids: list[int]
    layers: Layers

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


class Prefixes:
    """Texts of rows that left, the least recently used forgotten beyond `budget` bytes."""

    def __init__(self, budget: int, least: int = LEAST) -> None:
        self.budget, self.least = budget, least
        self._kept: list[Kept] = []  # the most recently used last

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(kept.bytes for kept in self._kept)

    def keep(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep a text in place of those that it goes on from; one beyond the budget is not kept."""
        new = Kept(list(ids), layers)
        if new.bytes > self.budget:
            return
        self._kept = [kept for kept in self._kept if new.ids[: len(kept.ids)] != kept.ids]
        self._kept.append(new)
        while self.bytes > self.budget or len(self._kept) > MOST_KEPT:
            self._kept.pop(0)

    def longest(self, ids: Sequence[int]) -> tuple[Kept | None, int]:
        """The text that begins as `ids` does for the most tokens, and for how many."""
        lengths = [common(kept.ids, ids, self.least) for kept in self._kept]
        best = max(lengths, default=0)
        return (self._kept[lengths.index(best)], best) if best else (None, 0)

    def used(self, kept: Kept) -> None:
        """It is the most recently used one now."""
        self._kept.remove(kept)
        self._kept.append(kept)


def common(known: Sequence[int], ids: Sequence[int], least: int = LEAST) -> int:
    """Tokens that both begin with, 0 for a few; the last of `ids` must be read in any case."""
    most = min(len(known), len(ids) - 1)
    if most < least or list(known[:least]) != list(ids[:least]):
        return 0
    pairs = zip(known[:most], ids[:most], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), most)
