"""How many weights each block of columns loses when a pass over the columns prunes.

SparseGPT takes the same share of every block. Where energy differs along the inputs that ruins the
blocks that matter (three times Wanda's error on inputs sorted by energy), so here a block loses as
many as Wanda would take of it; which ones is decided when the pass gets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lcc.compression.patterns import Pattern, rows_without_lowest, without_lowest
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["layer", "row"]
"""Whether rows may lose more and less than each other."""


@dataclass(frozen=True)
class Quotas:
    """Of stacked layers, in the order in which columns are solved."""

    gone: tuple[Tensor, ...]  # per layer (out, runs of inputs) bool: what Wanda would take
    run: int
    scope: Scope

    def choose(self, costs: Tensor, first: int) -> Tensor:
        """What stays of a block that begins at column `first`; (columns, out) costs → bool."""
        runs = slice(first // self.run, (first + len(costs)) // self.run)
        rows = torch.split(costs, [len(gone) for gone in self.gone], dim=1)
        kept = [self._kept(c, gone[:, runs]) for c, gone in zip(rows, self.gone, strict=True)]
        return torch.cat(kept, dim=1)

    def _kept(self, costs: Tensor, gone: Tensor) -> Tensor:
        columns, num_rows = costs.shape
        costs = costs.reshape(columns // self.run, self.run, num_rows).sum(dim=1)  # (runs, out)
        if self.scope == "layer":
            kept = without_lowest(costs, int(gone.sum()))
        else:
            kept = rows_without_lowest(costs.T, gone.sum(dim=1)).T
        return kept.repeat_interleave(self.run, dim=0) if self.run > 1 else kept


def quotas(
    weight: Tensor,
    diagonal: Tensor,
    order: Tensor,
    *,
    patterns: Sequence[Pattern],
    sizes: Sequence[int],
    scope: Scope,
) -> Quotas:
    """For layers stacked in `weight`, each with a pattern (of one run) and a number of rows.

    `diagonal` is that of the Gram, `order` that of the columns. Every layer loses exactly what its
    pattern asks.
    """
    scores = weight.square() * diagonal
    gone = []
    for pattern, own in zip(patterns, torch.split(scores, list(sizes)), strict=True):
        runs = pattern.runs(own[:, order])
        if scope == "layer":
            num = pattern.num_zeros(len(order)) // pattern.run * len(runs)
            gone.append(~without_lowest(runs, num))
        else:
            nums = torch.full((len(runs),), pattern.num_zeros(len(order)) // pattern.run)
            gone.append(~rows_without_lowest(runs, nums.to(runs.device)))
    return Quotas(tuple(gone), patterns[0].run, scope)
