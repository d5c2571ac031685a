"""Compiled products of a few rows with weights as they are stored; memory bandwidth is the limit.

Imported only when one runs: numba takes half a second. Sums are those of float32 weights in another
order: a bfloat16 is the upper half of a float32, and a code less its zero times its scale is what
the grid means.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from lcc.core.types import Array

FASTMATH = {"contract", "reassoc", "nsz", "nnan"}
BLOCK = 64  # rows of weights that one thread takes at a time


def _bits_as_float(typing_context: Any, bits: Array) -> Any:
    """The float32 whose bits these are."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), build


_as_float: Any = intrinsic(_bits_as_float)


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _widen_bf16(row: Array, buffer: Array) -> None:
    for k in range(row.shape[0]):
        buffer[k] = _as_float(np.uint32(row[k]) << np.uint32(16))


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _widen_int8(row: Array, scales: Array, zeros: Array, buffer: Array) -> None:
    size = row.shape[0] // scales.shape[0]
    for group in range(scales.shape[0]):
        scale, zero = scales[group], zeros[group]
        begin = np.uint64(group * size)
        for k in range(size):
            place = begin + np.uint64(k)
            buffer[place] = (np.float32(row[place]) - zero) * scale


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _widen_int4(row: Array, scales: Array, zeros: Array, buffer: Array) -> None:
    """Of a group the first half stands in the lower four bits, the second in the upper ones."""
    half = row.shape[0] // scales.shape[0]
    for group in range(scales.shape[0]):
        scale, zero = scales[group], zeros[group]
        begin = np.uint64(group * half)
        for k in range(half):
            place = begin + np.uint64(k)
            low, high = np.int32(row[place] & np.uint8(15)), np.int32(row[place] >> np.uint8(4))
            buffer[begin + place] = (np.float32(low) - zero) * scale
            buffer[begin + place + np.uint64(half)] = (np.float32(high) - zero) * scale


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _dots(values: Array, inputs: Array, out: Array, n: int) -> None:
    """out[:, n]: the dot product of `values` with every input, four at a time."""
    b = 0
    while b + 4 <= inputs.shape[0]:
        x0, x1, x2, x3 = inputs[b], inputs[b + 1], inputs[b + 2], inputs[b + 3]
        s0 = s1 = s2 = s3 = np.float32(0)
        for k in range(values.shape[0]):
            value = values[k]
            s0 += value * x0[k]
            s1 += value * x1[k]
            s2 += value * x2[k]
            s3 += value * x3[k]
        out[b, n], out[b + 1, n], out[b + 2, n], out[b + 3, n] = s0, s1, s2, s3
        b += 4
    while b < inputs.shape[0]:
        x, s = inputs[b], np.float32(0)
        for k in range(values.shape[0]):
            s += values[k] * x[k]
        out[b, n] = s
        b += 1


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _dot_bf16(row: Array, x: Array) -> Any:
    total = np.float32(0)
    for k in range(row.shape[0]):
        total += _as_float(np.uint32(row[k]) << np.uint32(16)) * x[k]
    return total


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _block_bf16(block: int, weight: Array, inputs: Array, out: Array) -> None:
    if inputs.shape[0] == 1:
        for n in range(block * BLOCK, min(weight.shape[0], (block + 1) * BLOCK)):
            out[0, n] = _dot_bf16(weight[n], inputs[0])
        return
    buffer = np.empty(weight.shape[1], np.float32)
    for n in range(block * BLOCK, min(weight.shape[0], (block + 1) * BLOCK)):
        _widen_bf16(weight[n], buffer)
        _dots(buffer, inputs, out, n)


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def bf16_product(weight: Array, inputs: Array, out: Array) -> None:
    """out (B, N) = inputs (B, K) · weight (N, K)ᵀ, weight as the bits of bfloat16."""
    for block in range((weight.shape[0] + BLOCK - 1) // BLOCK):
        _block_bf16(block, weight, inputs, out)


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def bf16_product_parallel(weight: Array, inputs: Array, out: Array) -> None:
    """The same on several threads."""
    for block in numba.prange((weight.shape[0] + BLOCK - 1) // BLOCK):
        _block_bf16(block, weight, inputs, out)


@cache
def _row_products(size: int) -> tuple[Any, Any]:
    """One row of codes times one input, for groups of `size`: codes a byte each, and two a byte."""
    half = size // 2

    @numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def of_bytes(row: Array, scales: Array, zeros: Array, x: Array, sums: Array) -> Any:
        total = np.float32(0)
        for group in range(scales.shape[0]):
            each = np.float32(0)
            for k in range(size):
                place = np.uint64(group * size + k)  # unsigned: never counted from the end
                each += np.float32(row[place]) * x[place]
            total += (each - zeros[group] * sums[group]) * scales[group]
        return total

    @numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def of_halves(row: Array, scales: Array, zeros: Array, x: Array, sums: Array) -> Any:
        total = np.float32(0)
        for group in range(scales.shape[0]):
            each = np.float32(0)
            for k in range(half):
                code = row[np.uint64(group * half + k)]
                low, high = np.int32(code & np.uint8(15)), np.int32(code >> np.uint8(4))
                each += (
                    np.float32(low) * x[np.uint64(group * size + k)]
                    + np.float32(high) * x[np.uint64(group * size + half + k)]
                )
            total += (each - zeros[group] * sums[group]) * scales[group]
        return total

    return of_bytes, of_halves


@cache
def grid_product(size: int, *, parallel: bool) -> Any:
    """out (B, N) = inputs (B, K) · ((codes − zeros) · scales)ᵀ, for groups of `size` inputs.

    Takes codes (N, K) int8, or (N, K/2) uint8 of two codes each; scales and zeros (N, groups)
    float32; inputs; out. With a constant size loops are unrolled, which is twice as fast.
    """
    of_bytes, of_halves = _row_products(size)

    @numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def of_block(
        block: int, codes: Array, scales: Array, zeros: Array, inputs: Array, sums: Array, out: Array
    ) -> None:
        rows = range(block * BLOCK, min(codes.shape[0], (block + 1) * BLOCK))
        is_packed = codes.shape[1] != inputs.shape[1]
        if inputs.shape[0] == 1:
            for n in rows:
                if is_packed:
                    out[0, n] = of_halves(codes[n], scales[n], zeros[n], inputs[0], sums)
                else:
                    out[0, n] = of_bytes(codes[n], scales[n], zeros[n], inputs[0], sums)
            return
        buffer = np.empty(inputs.shape[1], np.float32)
        for n in rows:
            if is_packed:
                _widen_int4(codes[n], scales[n], zeros[n], buffer)
            else:
                _widen_int8(codes[n], scales[n], zeros[n], buffer)
            _dots(buffer, inputs, out, n)

    @numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def sums_of(x: Array, num_groups: int) -> Any:
        sums = np.zeros(num_groups, np.float32)
        for group in range(num_groups):
            for k in range(size):
                sums[group] += x[np.uint64(group * size + k)]
        return sums

    @numba.njit(parallel=parallel, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
    def product(codes: Array, scales: Array, zeros: Array, inputs: Array, out: Array) -> None:
        sums = sums_of(inputs[0], scales.shape[1])  # A single input's zeros are taken off at once.
        for block in numba.prange((codes.shape[0] + BLOCK - 1) // BLOCK):
            of_block(block, codes, scales, zeros, inputs, sums, out)

    return product


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def widen_grid(codes: Array, scales: Array, zeros: Array, out: Array) -> None:
    """out (N, K) float32: the weights that the codes mean."""
    for n in range(codes.shape[0]):
        if codes.shape[1] != out.shape[1]:
            _widen_int4(codes[n], scales[n], zeros[n], out[n])
        else:
            _widen_int8(codes[n], scales[n], zeros[n], out[n])
