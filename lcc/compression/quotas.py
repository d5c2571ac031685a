"""How many weights each block of columns loses when a pass over the columns prunes.

SparseGPT takes the same share of every block. Where energy differs along the inputs that ruins the
blocks that matter (three times Wanda's error on inputs sorted by energy), so here a block loses as
many as would go if all weights were judged at once by what they cost; which ones is decided when
the pass gets there.
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

    counts: tuple[Tensor, ...]  # per layer (out, blocks) int64: runs of inputs that go
    block_size: int
    run: int
    scope: Scope

    def choose(self, costs: Tensor, first: int) -> Tensor:
        """What stays of a block that begins at column `first`; (columns, out) costs → bool."""
        rows = torch.split(costs, [len(counts) for counts in self.counts], dim=1)
        block = first // self.block_size
        kept = [self._kept(c, n[:, block]) for c, n in zip(rows, self.counts, strict=True)]
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)

    def _kept(self, costs: Tensor, counts: Tensor) -> Tensor:
        columns, num_rows = costs.shape
        if self.run > 1:
            costs = costs.reshape(columns // self.run, self.run, num_rows).sum(dim=1)  # (runs, out)
        if self.scope == "layer":
            kept = without_lowest(costs, int(counts.sum()))
        else:
            kept = rows_without_lowest(costs.T, counts).T
        return kept.repeat_interleave(self.run, dim=0) if self.run > 1 else kept


def quotas(
    weight: Tensor,
    costs: Tensor,
    order: Tensor,
    *,
    patterns: Sequence[Pattern],
    sizes: Sequence[int],
    scope: Scope,
    block_size: int,
) -> Quotas:
    """For layers stacked in `weight`, each with a pattern (of one run) and a number of rows.

    `costs` (in,) is what a weight of one costs to lose: the Gram's diagonal (as Wanda has it), or
    the factor's. `order` is that of the columns. Every layer loses exactly what its pattern asks.
    """
    scores = weight.square() * costs
    run, counts = patterns[0].run, []
    # Runs are not torn apart: one stands where its first input does.
    block = order.new_empty(len(order) // run)
    block[order[::run] // run] = torch.arange(0, len(order), run, device=order.device) // block_size
    belongs = torch.nn.functional.one_hot(block).float()  # (runs, blocks)
    for pattern, own in zip(patterns, torch.split(scores, list(sizes)), strict=True):
        runs = pattern.runs(own)
        num = pattern.num_zeros(len(order)) // run
        if scope == "layer":
            kept = without_lowest(runs, num * len(runs))
        else:
            kept = rows_without_lowest(runs, torch.full((len(runs),), num, device=runs.device))
        counts.append(((~kept).float() @ belongs).long())
    return Quotas(tuple(counts), block_size, run, scope)
