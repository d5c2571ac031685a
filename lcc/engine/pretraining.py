"""What pretraining objectives share: what they draw from, and their examples as a feed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.engine.corpus import Corpus, TextRows
from lcc.engine.objectives import Batch, LogitsOf
from lcc.parts.encoding import IGNORED
from lcc.parts.framing import Frame

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.parts.checkpoint import Head

REMEMBERED = 8192  # drawn examples kept: each is asked for its targets and then for itself


@dataclass(frozen=True)
class Material:
    """What an objective may draw from.

    `length` is the most tokens of an example; `ordinary` are the ids that stand for text;
    `isolated` says that the model can be kept from looking across documents in one block.
    """

    corpus: Corpus | TextRows
    length: int
    frame: Frame
    ordinary: Sequence[int]
    mask: int | None = None
    eos: int | None = None
    sentinels: Sequence[int] = ()
    isolated: bool = False


@dataclass(frozen=True)
class Drawn:
    """An example as one epoch sees it: ids, and labels (of the same places, or a target text).

    `kinds` tell the texts of a pair apart, `positions` start again with every document, and
    `relation` is 1 for a pair put together at random.
    """

    input_ids: list[int]
    labels: list[int]
    kinds: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    relation: int = 0

    @property
    def num_targets(self) -> int:
        """Predictions that are scored."""
        return sum(label != IGNORED for label in self.labels)


Piece = tuple[int, int]
"""Where an example's tokens start and stop in the corpus."""


class Objective(Protocol):
    """A card of the shelf `objectives`: how text becomes examples, and what is minimised."""

    head: ClassVar[Head]
    by_sentence: ClassVar[bool]  # whether documents must come apart into sentences
    marks_ends: ClassVar[bool]  # whether start and end tokens belong to the text

    def pieces(self, material: Material) -> list[Piece]:
        """The examples of an epoch, in the corpus' order."""
        ...

    def draw(self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
             ) -> Drawn:  # fmt: skip
        """One example; everything random about it comes from `dice`."""
        ...

    def collate(self, drawn: Sequence[Drawn], material: Material, *, pad: int, device: str
                ) -> Batch:  # fmt: skip
        """Examples as a batch."""
        ...

    def student(self, model: Module) -> LogitsOf:
        """Logits at a batch's targets."""
        ...

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        """The summed loss where it is more than the cross entropy of `student`, else None."""
        ...


class Drawing:
    """An objective's examples as one epoch sees them; a Supply."""

    def __init__(
        self, objective: Objective, material: Material, *, seed: int, split: str, epoch: int = 0,
        pieces: Sequence[Piece] | None = None,
    ) -> None:  # fmt: skip
        self.objective, self.material = objective, material
        self.seed, self.split, self.epoch = seed, split, epoch
        self.pieces = objective.pieces(material) if pieces is None else pieces
        self.lengths = [stop - start for start, stop in self.pieces]
        self.example = lru_cache(REMEMBERED)(self._draw)
        self.targets: Sequence[int] = _Targets(self)
        self._other: Drawing | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def at(self, epoch: int) -> Drawing:
        if epoch == self.epoch:
            return self
        if self._other is None or self._other.epoch != epoch:
            self._other = Drawing(self.objective, self.material, seed=self.seed, split=self.split,
                                  epoch=epoch, pieces=self.pieces)  # fmt: skip
        return self._other

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        drawn = [self.example(i) for i in indices]
        return self.objective.collate(drawn, self.material, pad=pad, device=device)

    def _draw(self, index: int) -> Drawn:
        dice = random.Random(f"draw {self.split} {self.seed} {self.epoch} {index}")
        return self.objective.draw(self.material, self.pieces, index, dice)


class _Targets(Sequence[int]):
    """How many predictions of each example are scored, found when it is asked for."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing

    def __len__(self) -> int:
        return len(self.drawing)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.drawing.example(index).num_targets


def document_pieces(material: Material, room: int, *, least: int = 1) -> list[Piece]:
    """Every document in pieces of at most `room` tokens; what is shorter than `least` is left."""
    found, start = [], 0
    for end in material.corpus.ends.tolist():
        cuts = [*range(start, end, room), end]
        found += [(a, b) for a, b in pairwise(cuts) if b - a >= least]
        start = end
    return found


def require_mask(material: Material) -> None:
    """Raises DataError for a tokenizer without a token to hide others by."""
    if material.mask is None:
        raise DataError("pretrain: this tokenizer has no mask token; train one with "
                        "tokenizer: {kind: wordpiece}, or choose objective causal.")  # fmt: skip


def padded_rows(rows: Sequence[Sequence[int]], value: int, device: str) -> Tensor:
    """(num_rows, longest), filled up with `value` on the right."""
    width = max(len(row) for row in rows)
    filled = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(filled, device=device)
