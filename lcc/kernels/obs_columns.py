"""Compiled loop over a block of columns of the OBS solver, and the plain torch it is held to.

Columns lie along the first dimension, so that a row of the block holds one input of many outputs
and every step is the same arithmetic on neighbouring numbers. Imported only when a solve runs:
numba takes half a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from lcc.core.lazy import torch
from lcc.kernels import follow_torch

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.core.types import Array

TILE = 128  # outputs that one thread solves together: block × TILE floats stay in a near cache
STRIDE = 8  # columns whose errors are handed on together; N:M groups lie inside
STRIP = 16  # rows that one thread turns into columns together: a line of a cache
# Not "arcp": a product with 1 / scale rounds to the other neighbour now and then.
FASTMATH = {"contract", "reassoc", "nsz"}


@dataclass(frozen=True)
class ColumnBlock:
    """Some columns in the order of solving, ready to be solved."""

    weight: Tensor  # (columns, out), as it was
    target: Tensor  # (columns, out): where the errors of earlier blocks move it; is overwritten
    feedback: Tensor  # (columns, columns) lower
    spread: Tensor  # (columns,)
    looks_ahead: bool  # whether errors within the block count from the target or from the weight
    keep: Tensor  # (columns, out) float32 of zeros and ones, or empty: everything is kept
    pattern: tuple[int, int]  # N of M that are kept, or (0, 0)
    scale: Tensor  # (groups, out), or empty: no grid
    zero: Tensor  # (groups, out)
    group: Tensor  # (columns,) int64
    limits: tuple[int, int]  # lowest and highest code
    errors: Tensor  # (columns, out): to be filled with weight − what became of it
    solved: Tensor  # (columns, out): to be filled with int8 codes, or float32 without a grid


def solve(block: ColumnBlock) -> None:
    """Fill `block.errors` and `block.solved`."""
    if block.weight.device.type != "cpu":
        solve_in_torch(block)
        return
    follow_torch()
    arrays = (
        block.weight,
        block.target,
        block.feedback,
        block.spread,
        block.keep,
        block.scale,
        block.zero,
        block.group,
        block.errors,
        block.solved,
    )
    compiled: Any = _solve
    compiled(*(a.numpy() for a in arrays), *block.pattern, *block.limits, block.looks_ahead)


def permuted(gram: Tensor, order: Tensor, dtype: torch.dtype) -> Tensor:
    """The Gram in this order; on the CPU its upper half and not what is below."""
    if gram.device.type != "cpu":
        return gram[order][:, order].to(dtype)
    follow_torch()
    ordered, compiled = gram.new_empty(gram.shape, dtype=dtype), _permuted  # type: tuple[Tensor, Any]
    compiled(gram.numpy(), order.numpy(), ordered.numpy())
    return ordered


def by_columns(weight: Tensor, order: Tensor) -> Tensor:
    """(out, in) float32 → (in, out), columns in this order."""
    if weight.device.type != "cpu":
        return weight.T[order]
    follow_torch()
    turned, compiled = weight.new_empty(weight.shape[::-1]), _by_columns  # type: tuple[Tensor, Any]
    compiled(weight.numpy(), order.numpy(), turned.numpy())
    return turned


def by_rows(solved: Tensor, order: Tensor) -> Tensor:
    """(in, out) of columns in this order → (out, in) as they were."""
    turned = solved.new_empty(solved.shape[::-1])
    if solved.device.type != "cpu":
        turned[:, order] = solved.T
        return turned
    follow_torch()
    compiled: Any = _by_rows
    compiled(solved.numpy(), order.numpy(), turned.numpy())
    return turned


def solve_in_torch(block: ColumnBlock) -> None:
    """The same, column by column, for any device."""
    target, keep = block.target, block.keep
    kept, of = block.pattern
    for i in range(len(target)):
        if of and i % of == 0:
            cost = (target[i : i + of] * block.spread[i : i + of, None]).abs()
            best = cost.sort(dim=0, stable=True, descending=True).indices[:kept]
            chosen = torch.zeros_like(cost).scatter_(0, best, 1.0)
        mask = chosen[i % of] if of else keep[i] if keep.numel() else torch.ones_like(target[i])
        if block.scale.numel():
            scale, zero = block.scale[block.group[i]], block.zero[block.group[i]]
            code = ((target[i] / scale).round() + zero).clamp(*block.limits)
            steps = (code - zero) * mask
            value, solved = steps * scale, steps + zero
        else:
            value = solved = target[i] * mask
        block.solved[i] = solved.to(block.solved.dtype)
        block.errors[i] = block.weight[i] - value
        error = target[i] - value if block.looks_ahead else block.errors[i]
        target[i + 1 :].addr_(block.feedback[i + 1 :, i], error)


def _compiled(function: Any) -> Any:
    """Lengths of inner loops stay variables: LLVM leaves a loop of a known length scalar."""
    return numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")(function)


@_compiled
def _choose(t: Array, chosen: Array, spread: Array, first: int, kept: int, of: int) -> None:
    """Keep `kept` of `of` columns from `first` on: those that cost most to lose."""
    for j in range(of):
        mine, num_better = t[first + j], chosen[j]
        num_better[:] = 0
        for k in range(of):
            other, ratio = t[first + k], spread[first + k] / spread[first + j]
            if k < j:  # Of equals the first stays.
                for r in range(len(mine)):
                    better = abs(other[r]) * ratio >= abs(mine[r])
                    num_better[r] += np.float32(1) if better else np.float32(0)
            elif k > j:
                for r in range(len(mine)):
                    better = abs(other[r]) * ratio > abs(mine[r])
                    num_better[r] += np.float32(1) if better else np.float32(0)
    for j in range(of):
        row = chosen[j]
        for r in range(len(row)):
            row[r] = np.float32(1) if row[r] < kept else np.float32(0)


@_compiled
def _quantize(
    t: Array, mask: Array, value: Array, scale: Array, zero: Array, low: Array, high: Array
) -> None:
    """Codes in the place of the targets, and what they stand for into `value`."""
    for r in range(len(t)):
        nearest = min(max(np.rint(t[r] / scale[r]) + zero[r], low), high)
        steps = (nearest - zero[r]) * mask[r]
        value[r] = steps * scale[r]
        t[r] = steps + zero[r]


@_compiled
def _note_errors(weight: Array, value: Array, mine: Array, errors: Array) -> None:
    """`mine` is what was to be met, and becomes how far off the value is."""
    for r in range(len(value)):
        errors[r] = weight[r] - value[r]
        mine[r] -= value[r]


@_compiled
def _hand_on_within(t: Array, error: Array, feedback: Array, i: int, stop: int) -> None:
    for j in range(i + 1, stop):
        row, factor = t[j], feedback[j, i]
        for r in range(len(row)):
            row[r] += error[r] * factor


@_compiled
def _hand_on(t: Array, error: Array, feedback: Array, i: int) -> None:
    """The errors of eight columns from `i` on, to all later ones: one load per eight products."""
    e0, e1, e2, e3 = error[0], error[1], error[2], error[3]
    e4, e5, e6, e7 = error[4], error[5], error[6], error[7]
    for j in range(i + STRIDE, len(t)):
        row, f = t[j], feedback[j]
        f0, f1, f2, f3 = f[i], f[i + 1], f[i + 2], f[i + 3]
        f4, f5, f6, f7 = f[i + 4], f[i + 5], f[i + 6], f[i + 7]
        for r in range(len(row)):
            row[r] += (
                e0[r] * f0
                + e1[r] * f1
                + e2[r] * f2
                + e3[r] * f3
                + e4[r] * f4
                + e5[r] * f5
                + e6[r] * f6
                + e7[r] * f7
            )


@numba.njit(parallel=True, nogil=True, cache=True)
def _permuted(gram: Array, order: Array, ordered: Array) -> None:
    for i in numba.prange(len(order)):
        row, mine = gram[order[i]], ordered[i]
        for j in range(i, len(order)):
            mine[j] = row[order[j]]


@numba.njit(parallel=True, nogil=True, cache=True)
def _by_columns(weight: Array, order: Array, turned: Array) -> None:
    num_rows = len(weight)
    for strip in numba.prange((num_rows + STRIP - 1) // STRIP):
        first, last = strip * STRIP, min(strip * STRIP + STRIP, num_rows)
        for i in range(len(order)):
            column, mine = order[i], turned[i]
            for r in range(first, last):
                mine[r] = weight[r, column]


@numba.njit(parallel=True, nogil=True, cache=True)
def _by_rows(solved: Array, order: Array, turned: Array) -> None:
    num_rows = len(turned)
    for strip in numba.prange((num_rows + STRIP - 1) // STRIP):
        first, last = strip * STRIP, min(strip * STRIP + STRIP, num_rows)
        for i in range(len(order)):
            column, mine = order[i], solved[i]
            for r in range(first, last):
                turned[r, column] = mine[r]


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _solve(
    weight: Array,
    targets: Array,
    feedback: Array,
    spread: Array,
    keep: Array,
    scale: Array,
    zero: Array,
    group: Any,
    errors: Array,
    solved: Array,
    kept: int,
    of: int,
    lowest: int,
    highest: int,
    looks_ahead: bool,
) -> None:
    num_columns, num_rows = weight.shape
    low, high = np.float32(lowest), np.float32(highest)
    for tile in numba.prange((num_rows + TILE - 1) // TILE):
        rows = slice(tile * TILE, min(tile * TILE + TILE, num_rows))
        width = rows.stop - rows.start
        t = targets[:, rows].copy()
        chosen = np.ones((max(of, 1), width), dtype=np.float32)
        value = np.empty(width, dtype=np.float32)
        error = np.empty((STRIDE, width), dtype=np.float32)
        for i in range(num_columns):
            if of and i % of == 0:
                _choose(t, chosen, spread, i, kept, of)
            mask = chosen[i % max(of, 1)]
            if keep.size:
                mask[:] = keep[i, rows]
            mine, target = error[i % STRIDE], t[i]
            mine[:] = target if looks_ahead else weight[i, rows]
            if scale.size:
                g = group[i]
                _quantize(target, mask, value, scale[g, rows], zero[g, rows], low, high)
            else:
                target *= mask
                value[:] = target
            _note_errors(weight[i, rows], value, mine, errors[i, rows])
            solved[i, rows] = target
            start = i - i % STRIDE
            _hand_on_within(t, mine, feedback, i, min(start + STRIDE, num_columns))
            if i - start == STRIDE - 1:
                _hand_on(t, error, feedback, start)
