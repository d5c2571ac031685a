"""The shelf of criteria: how much a weight matters.

A channel matters as much as the norm of its consumer's column of scores; a head as much as the
norm over all its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats
    from lcc.compression.sparsity import Pattern

Needs = Literal["gram", "diagonal"]


class Criterion(Protocol):
    """Scores single weights; the higher, the more it should stay."""

    revision: ClassVar[int]
    needs: ClassVar[Needs | None]  # what `score` reads of `stats`

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """(out, in) scores of an (out, in) weight whose input looks like `stats`."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """A criterion that also changes what stays."""

    def prune(
        self, weight: Tensor, stats: LayerStats, patterns: Sequence[Pattern], sizes: Sequence[int]
    ) -> Tensor:
        """The pruned weight of layers that read one input, stacked.

        Each layer has a pattern (of one kind) and a number of rows.
        """
        ...


@runtime_checkable
class ByChannel(Protocol):
    """A criterion with a word of its own for whole channels."""

    def channels(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """(in,) importance of the channels that an (out, in) weight reads."""
        ...


@runtime_checkable
class ByGradient(Protocol):
    """A criterion that asks the task's loss."""

    def score_by_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Scores of any weight whose gradient on one batch is `gradient`, in its shape."""
        ...
