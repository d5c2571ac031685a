"""One pass over the columns of a weight: quantize, prune, or both, and let later columns make up.

For a layer with Gram H the error of a change E = W − Q is tr(E H Eᵀ). With H = U Uᵀ, U upper, the
k-th column of E U holds the errors of columns up to k, so column k is free to cancel what those
before it left: its target is w_k + Σ_{j<k} e_j U_jk / U_kk. This is GPTQ (arXiv 2210.17323)
without an inverse. SparseGPT (arXiv 2301.00774) chooses among columns still to come, so it needs to
know where they would stand by now: with L = (U D⁻¹)ᵀ, D the diagonal of U, a column off its target
by e moves all later ones by −L⁻¹ e. What column k costs to lose while all later ones are free is
(w U_kk)².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lcc.core.errors import GateError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128  # columns between two products with all errors so far; SparseGPT's block of one mask
MAX_DAMPING = 1.0

Order = Literal["layout", "falling", "rising"]

Choose = Callable[["Tensor", int], "Tensor"]
"""(columns, out) costs and the index of the first column → (columns, out) bool, True: stays."""


@dataclass(frozen=True)
class Factor:
    """What a pass needs to know of a Gram; columns in the order in which they are solved."""

    order: Tensor  # (in,) int64: the i-th column solved is order[i]
    feedback: Tensor  # (in, in) float32 lower: how an error of column j moves a later k, at [k, j]
    spread: Tensor  # (in,) float32: U_kk
    damping: float  # as used: more than was asked where the Gram needed it
    looks_ahead: bool  # errors are off the target, and later columns stand where they would by now


@dataclass(frozen=True)
class Levels:
    """A grid per row and group of neighbouring inputs: (code − zero) · scale."""

    scale: Tensor  # (out, groups)
    zero: Tensor  # (out, groups), whole numbers
    lowest: int
    highest: int


def factorize(
    gram: Tensor,
    *,
    damping: float = 0.01,
    order: Order = "layout",
    unit: int = 1,
    looks_ahead: bool = False,
) -> Factor:
    """Factorize H + λI with λ = `damping` · mean(diag H), more where that is not enough.

    A pass that prunes `looks_ahead`, which costs a triangular inverse; rounding comes out the same.

    The order is that of the inputs' energy: `falling`, while most columns can still make up for
    the largest, or `rising`; `unit` neighbours stay together (N:M groups). A dead input is left
    with λ alone: it touches no other and costs least. Raises GateError for a Gram with non-finite
    numbers.
    """
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise GateError("calibration gave a Gram with non-finite numbers; nothing was changed.")
    columns = _sorted(diagonal, order, unit)
    # Solved in float64: the last columns' U_kk are small differences of large sums.
    lower, damping = _cholesky(gram, columns.flip(0), damping)
    spread = lower.diagonal().flip(0)  # of U, with H = U Uᵀ
    feedback = torch.empty_like(gram, dtype=torch.float32)
    for here in _strips(len(gram)):  # A Gram of 11,008 inputs has a gigabyte in float64.
        mirrored = slice(len(gram) - here.stop, len(gram) - here.start)
        feedback[here] = (lower[:, mirrored].flip(0, 1) / spread[here]).T
    if looks_ahead:
        _invert(feedback)
        feedback.neg_()
    return Factor(columns, feedback, spread.float(), damping, looks_ahead)


def _sorted(energy: Tensor, order: Order, unit: int) -> Tensor:
    columns = torch.arange(len(energy), device=energy.device)
    if order == "layout":
        return columns
    units = energy.view(-1, unit).sum(dim=1).argsort(descending=order == "falling", stable=True)
    return columns.view(-1, unit)[units].flatten()


def _cholesky(gram: Tensor, order: Tensor, damping: float) -> tuple[Tensor, float]:
    """Of the Gram in this order, its diagonal raised: ten times more until it succeeds."""
    # Transposed: LAPACK then works in place, where it else copies.
    matrix = torch.empty(gram.shape, dtype=torch.float64, device=gram.device).T
    failed = torch.empty((), dtype=torch.int32, device=gram.device)
    mean = gram.diagonal()[order].double().mean().clamp(min=torch.finfo(torch.float32).tiny)
    while True:
        for here in _strips(len(gram)):
            matrix[here] = gram[order[here]][:, order].double()
        matrix.diagonal().add_(damping * mean)
        torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
        if not int(failed):
            return matrix, damping
        if damping >= MAX_DAMPING:
            raise GateError(f"a Gram is not positive definite even with damping {damping:g}.")
        damping = min(max(10 * damping, 1e-4), MAX_DAMPING)


def _invert(lower: Tensor) -> None:
    """A unit lower triangular matrix, in place, by halves."""
    size = len(lower)
    if size <= BLOCK:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True))
        return
    half = size // 2
    _invert(lower[:half, :half])
    _invert(lower[half:, half:])
    lower[half:, :half] = (lower[half:, half:] @ -lower[half:, :half]) @ lower[:half, :half]


def _strips(size: int, width: int = 512) -> Iterator[slice]:
    return (slice(first, min(first + width, size)) for first in range(0, size, width))


def solve_columns(
    weight: Tensor,
    factor: Factor,
    *,
    levels: Levels | None = None,
    choose: Choose | None = None,
    pattern: tuple[int, int] = (0, 0),
    block_size: int = BLOCK,
) -> Tensor:
    """(out, in) int8 codes on `levels`, or without a grid the float32 weights that stay.

    `choose` says per block of columns what stays, or `pattern` (N, M): N of M neighbours.
    """
    from lcc.compression import column_kernels

    num_rows, num_columns = weight.shape
    _, of = pattern
    assert not of or block_size % of == 0, (block_size, of)
    assert factor.looks_ahead or (choose is None and not of), "choosing needs to look ahead"
    weight = weight.float().contiguous()
    solved = torch.empty_like(weight, dtype=torch.float32 if levels is None else torch.int8)
    errors = weight.new_empty(num_columns, num_rows)
    moved = weight.new_zeros(min(block_size, num_columns), num_rows)
    scale, zero, group, limits = _along_columns(levels, factor.order, weight)
    for first in range(0, num_columns, block_size):
        here = slice(first, min(first + block_size, num_columns))
        columns, moved = factor.order[here], moved[: here.stop - first]
        if first:
            torch.mm(factor.feedback[here, :first], errors[:first], out=moved)
        keep = weight.new_empty((0, 0))
        if choose is not None:
            costs = column_kernels.costs(weight, columns, moved, factor.spread[here])
            keep = choose(costs, first).float()
        column_kernels.solve(
            column_kernels.Block(
                weight=weight,
                columns=columns,
                moved=moved,
                feedback=factor.feedback[here, here].contiguous(),
                spread=factor.spread[here],
                keep=keep,
                looks_ahead=factor.looks_ahead,
                pattern=pattern,
                scale=scale,
                zero=zero,
                group=group[here],
                limits=limits,
                errors=errors[here],
                solved=solved,
            )
        )
    return solved


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
    lost, whole = (row_energy(m[rows].float(), gram) for m in (change, weight))
    return lost / max(whole, torch.finfo(torch.float32).tiny)


def spaced_rows(weight: Tensor, num_rows: int) -> slice:
    """At most so many rows, evenly spaced."""
    return slice(0, None, -(-len(weight) // num_rows))


def row_energy(rows: Tensor, gram: Tensor) -> float:
    """tr(E H Eᵀ) of some rows of a change E."""
    return float(((rows @ gram) * rows).sum())
