"""What training draws its batches from: a contract that rows and corpora both keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lcc.engine.objectives import Batch


class Supply(Protocol):
    """Examples by number, as one epoch sees them.

    Batches are planned from `lengths` alone, so these are the same in every epoch; where an example
    is drawn anew each time (masks, spans), its length is the most that it can cost.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that each example costs."""
        ...

    @property
    def targets(self) -> Sequence[int]:
        """Predictions of each example that are scored in this epoch."""
        ...

    def __len__(self) -> int: ...

    def at(self, epoch: int) -> Supply:
        """The same examples as `epoch` sees them: a function of seed, epoch and number alone."""
        ...

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        """These examples as one micro-batch."""
        ...
