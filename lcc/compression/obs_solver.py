"""OBS solver: one pass over the columns of a weight that quantizes, prunes or both.

For a layer with Gram H the error of a change E = W − Q is tr(E H Eᵀ). With H = U Uᵀ, U upper, the
k-th column of E U holds the errors of columns up to k, so column k is free to cancel what those
before it left: its target is w_k + Σ_{j<k} e_j U_jk / U_kk. This is GPTQ (arXiv 2210.17323)
without an inverse. SparseGPT (arXiv 2301.00774) chooses among columns still to come, so it needs to
know where they would stand by now: with errors e_A of the columns before it, a block B is best
moved by e_A U_AB U_BB⁻¹, of which only a block is inverted. What column k costs to lose while all
later ones are free is (w U_kk)².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lcc.compression.sparsity import Pattern, rows_without_lowest, without_lowest
from lcc.core.errors import GateError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128  # columns between two products with all errors so far; SparseGPT's block of one mask
MAX_DAMPING = 1.0
ROUNDING = 0.1  # of what is added to the diagonal: more is not left to float32

Order = Literal["layout", "falling", "rising"]

Choose = Callable[["Tensor", int], "Tensor"]
"""(columns, out) costs and the index of the first column → (columns, out) bool, True: stays."""


@dataclass(frozen=True)
class GramFactor:
    """What a pass needs to know of a Gram; columns in the order in which they are solved."""

    order: Tensor  # (in,) int64: the i-th column solved is order[i]
    feedback: Tensor  # (in, in) float32 unit lower: U_jk / U_kk at [k, j]
    spread: Tensor  # (in,) float32: U_kk
    damping: float  # as used: more than was asked where the Gram needed it

    @property
    def costs(self) -> Tensor:
        """What a weight of one costs to lose while all later ones are free: (in,), as they were."""
        costs = torch.empty_like(self.spread)
        costs[self.order] = self.spread.square()
        return costs


@dataclass(frozen=True)
class Levels:
    """A grid per row and group of neighbouring inputs: (code − zero) · scale."""

    scale: Tensor  # (out, groups)
    zero: Tensor  # (out, groups), whole numbers
    lowest: int
    highest: int


def factorize(gram: Tensor, *, damping: float = 0.01, order: Order = "layout", unit: int = 1) -> GramFactor:
    """Factorize H + λI with λ = `damping` · mean(diag H), more where that is not enough.

    The order is that of the inputs' energy: `falling`, while most columns can still make up for
    the largest, or `rising`; `unit` neighbours stay together (N:M groups). A dead input is left
    with λ alone: it touches no other and costs least. Raises GateError for a Gram with non-finite
    numbers.
    """
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise GateError("calibration gave a Gram with non-finite numbers; nothing was changed.")
    columns = _sorted(diagonal, order, unit)
    mirrored, damping = _cholesky(gram, columns.flip(0), damping)
    # The factor of the Gram turned round, turned back, is U with H = U Uᵀ.
    feedback = mirrored.flip(0, 1).float()
    spread = feedback.diagonal().clone()
    feedback.div_(spread[:, None])
    return GramFactor(columns, feedback, spread, damping)


def _sorted(energy: Tensor, order: Order, unit: int) -> Tensor:
    columns = torch.arange(len(energy), device=energy.device)
    if order == "layout":
        return columns
    units = energy.view(-1, unit).sum(dim=1).argsort(descending=order == "falling", stable=True)
    return columns.view(-1, unit)[units].flatten()


def _cholesky(gram: Tensor, order: Tensor, damping: float) -> tuple[Tensor, float]:
    """Lᵀ of the Gram in this order, its diagonal raised: ten times more until it succeeds.

    In float32 unless rounding would count beside what is added to the diagonal, or fails.
    """
    from lcc.kernels import obs_columns

    diagonal = gram.diagonal().double()
    mean = float(diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny))
    rounding = torch.finfo(torch.float32).eps * float(diagonal.max())
    while True:
        for dtype in (torch.float32, torch.float64):
            if dtype == torch.float32 and rounding > ROUNDING * damping * mean:
                continue
            # Transposed: LAPACK then works in place, where it else copies, on the upper half.
            matrix = obs_columns.permuted(gram, order, dtype).T
            matrix.diagonal().add_(damping * mean)
            failed = torch.empty((), dtype=torch.int32, device=gram.device)
            torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
            if not int(failed):
                return matrix.T, damping
        if damping >= MAX_DAMPING:
            raise GateError(f"a Gram is not positive definite even with damping {damping:g}.")
        damping = min(max(10 * damping, 1e-4), MAX_DAMPING)


def solve_columns(
    weight: Tensor,
    factor: GramFactor,
    *,
    levels: Levels | None = None,
    choose: Choose | None = None,
    pattern: tuple[int, int] = (0, 0),
    block_size: int = BLOCK,
) -> Tensor:
    """(out, in) int8 codes on `levels`, or without a grid the float32 weights that stay.

    `choose` says per block of columns what stays, or `pattern` (N, M): N of M neighbours.
    """
    from lcc.kernels import obs_columns

    num_columns, (_, of) = weight.shape[1], pattern
    assert not of or block_size % of == 0, (block_size, of)
    looks_ahead = choose is not None or of > 0
    columns = obs_columns.by_columns(weight.float().contiguous(), factor.order)  # (in, out)
    solved = torch.empty_like(columns, dtype=torch.float32 if levels is None else torch.int8)
    errors = torch.empty_like(columns)
    scale, zero, group, limits = _along_columns(levels, factor.order, columns)
    for first in range(0, num_columns, block_size):
        here = slice(first, min(first + block_size, num_columns))
        reach, within = _feedback(factor, here, looks_ahead=looks_ahead)
        target = torch.addmm(columns[here], reach, errors[:first])
        spread, keep = factor.spread[here], columns.new_empty((0, 0))
        if choose is not None:
            kept = choose((target * spread[:, None]).square_(), first)
            keep = torch.empty_like(target).copy_(kept)  # rows lie together, whatever chose
        obs_columns.solve(
            obs_columns.ColumnBlock(
                weight=columns[here],
                target=target,
                feedback=within,
                spread=spread,
                keep=keep,
                looks_ahead=looks_ahead,
                pattern=pattern,
                scale=scale,
                zero=zero,
                group=group[here],
                limits=limits,
                errors=errors[here],
                solved=solved[here],
            )
        )
    return obs_columns.by_rows(solved, factor.order)


def _feedback(factor: GramFactor, here: slice, *, looks_ahead: bool) -> tuple[Tensor, Tensor]:
    """How errors of the columns before a block move its targets, and how those within it do.

    A pass that looks ahead counts errors within from the target, not from the weight.
    """
    before, within = factor.feedback[here, : here.start], factor.feedback[here, here].contiguous()
    if not looks_ahead:
        return before, within
    eye = torch.eye(len(within), dtype=within.dtype, device=within.device)
    inverse = torch.linalg.solve_triangular(within, eye, upper=False, unitriangular=True)
    return inverse @ before, inverse.neg().contiguous()


def _along_columns(
    levels: Levels | None, order: Tensor, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Scales and zeros with outputs last, and each solved column's group in the old layout."""
    if levels is None:
        nothing = like.new_empty((0, 0))
        return nothing, nothing, torch.zeros_like(order), (0, 0)
    size = len(order) // levels.scale.shape[1]
    scale = levels.scale.float().T.contiguous()
    zero = levels.zero.float().T.contiguous()
    return scale, zero, order // size, (levels.lowest, levels.highest)


def layer_error(change: Tensor, weight: Tensor, gram: Tensor, *, num_rows: int = 256) -> float:
    """tr(E H Eᵀ) / tr(W H Wᵀ) over at most `num_rows` rows: all cost more than the pass itself."""
    rows = spaced_rows(weight, num_rows)
    both = torch.cat([change[rows].float(), weight[rows].float()])
    lost, whole = row_energies(both, gram).chunk(2)
    return float(lost.sum()) / max(float(whole.sum()), torch.finfo(torch.float32).tiny)


def spaced_rows(weight: Tensor, num_rows: int) -> slice:
    """At most so many rows, evenly spaced."""
    return slice(0, None, -(-len(weight) // num_rows))


def row_energies(rows: Tensor, gram: Tensor) -> Tensor:
    """e H eᵀ of each row e of a change: (rows,)."""
    return (rows @ gram).mul_(rows).sum(dim=1)


# How many weights each block of columns loses when a pass over the columns prunes.
#
# SparseGPT takes the same share of every block. Where energy differs along the inputs that ruins
# the blocks that matter (three times Wanda's error on inputs sorted by energy), so here a block
# loses as many as would go if all weights were judged at once by what they cost; which ones is
# decided when the pass gets there.

Scope = Literal["layer", "row"]
"""Whether rows may lose more and less than each other."""


@dataclass(frozen=True)
class ColumnQuotas:
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
) -> ColumnQuotas:
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
    return ColumnQuotas(tuple(counts), block_size, run, scope)
