"""What training draws its batches from: a contract that rows and corpora both keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lcc.engine.batching import Example
from lcc.engine.objectives import Batch, collate, num_targets, num_tokens

if TYPE_CHECKING:
    from lcc.parts.checkpoint import Head


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


class Examples:
    """Encoded rows with what batching asks of them."""

    def __init__(self, rows: Sequence[Example], head: Head) -> None:
        self.head: Head = head
        self.rows = [row for row in rows if num_targets(row, head)]
        self.num_without_target = len(rows) - len(self.rows)
        self.lengths = [num_tokens(row, head) for row in self.rows]
        self.targets = [num_targets(row, head) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, epoch: int) -> Examples:
        """Rows are the same in every epoch."""
        return self

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        """These rows, padded on the right to the longest."""
        return collate([self.rows[i] for i in indices], head=self.head, pad=pad, device=device)
