"""Compiled search of the threshold below which a given number of scores lies, without sorting them.

Imported only when one is looked for: numba takes half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from lcc.core.lazy import torch
from lcc.kernels import follow_torch

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.core.types import Array

BINS = 1 << 16


def without_lowest(scores: Tensor, num: int) -> Tensor:
    """True everywhere but at the `num` lowest of non-negative float32 scores on the CPU.

    Of equal scores the first go.
    """
    flat = scores.contiguous().view(-1)
    mask = torch.empty(flat.shape, dtype=torch.bool)
    compiled: Any = _without_lowest
    # The bits of non-negative floats are in the order of their values.
    compiled(flat.numpy().view(np.uint32), num, mask.numpy())
    return mask.view(scores.shape)


def rows_without_lowest(scores: Tensor, nums: Tensor) -> Tensor:
    """True everywhere but at each row's `nums` (rows,) lowest; (rows, inputs) → bool."""
    mask = torch.empty(scores.shape, dtype=torch.bool)
    follow_torch()
    compiled: Any = _rows_without_lowest
    compiled(scores.numpy(), nums.numpy(), mask.numpy())
    return mask


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _rows_without_lowest(scores: Array, nums: Any, mask: Array) -> None:
    for row in numba.prange(len(scores)):
        own = scores[row].copy().view(np.int32)
        threshold, num_left = _threshold(own, nums[row])
        kept = mask[row]
        for i in range(len(own)):
            kept[i] = own[i] >= threshold
        i = 0
        while num_left > 0:
            if own[i] == threshold:
                kept[i] = False
                num_left -= 1
            i += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _threshold(bits: Array, num: int) -> Any:
    """Bits below which the `num` lowest lie, and how many of those equal to it go too.

    By halves of the range between the least and the largest: counting what lies below is a few
    vector instructions, while a partition moves one number at a time.
    """
    low = high = bits[0]
    for i in range(len(bits)):
        low, high = min(low, bits[i]), max(high, bits[i])
    below, high = np.int32(0), high + np.int32(1)
    while high - low > 1:
        middle, num_below = np.int32(low + (high - low) // 2), np.int32(0)
        for i in range(len(bits)):
            num_below = np.int32(num_below + np.int32(bits[i] < middle))  # not widened to 64 bits
        if num_below == num:
            return middle, 0
        if num_below < num:
            low, below = middle, num_below
        else:
            high = middle
    return low, num - below


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _without_lowest(bits: Array, num: int, mask: Array) -> None:
    high, num_left = _bin_of(bits, num, np.uint32(16), np.uint32(0), np.uint32(0))
    low, num_left = _bin_of(bits, num_left, np.uint32(0), np.uint32(16), np.uint32(high))
    threshold = (np.uint32(high) << np.uint32(16)) | np.uint32(low)
    for i in range(len(bits)):
        mask[i] = bits[i] >= threshold
    # The rest goes among those that are equal to the threshold.
    i = 0
    while num_left > 0:
        if bits[i] == threshold:
            mask[i] = False
            num_left -= 1
        i += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _bin_of(bits: Array, num: int, shift: Any, prefix_shift: Any, prefix: np.uint32) -> Any:
    """The 16 bits at `shift` of the `num`-th lowest with this prefix, and how many of it go."""
    counts = np.zeros(BINS, dtype=np.int64)
    for i in range(len(bits)):
        if prefix_shift == 0 or bits[i] >> prefix_shift == prefix:
            counts[(bits[i] >> shift) & np.uint32(BINS - 1)] += 1
    bin = 0
    while counts[bin] < num:
        num -= counts[bin]
        bin += 1
    return bin, num


# The search for scales, compiled for CPUs. Imported only when one runs: numba takes half a second.
#
# `compression.grids` has the plain torch that this is held to, and that other devices use.

FASTMATH = {"contract", "reassoc", "nsz", "nnan"}


def best_options(
    groups: Tensor, weighing: Tensor, scales: Tensor, zeros: Tensor, *, limits: tuple[int, int]
) -> Tensor:
    """Which of the options errs least in every group, (out, groups) int64.

    groups (out, groups, size), weighing (groups, size), scales (out, groups, options), zeros the
    same or, of a symmetric grid, empty; all float32.
    """
    follow_torch()
    best = torch.zeros(groups.shape[:2], dtype=torch.int64)
    arrays = (groups.contiguous(), weighing.contiguous(), scales.contiguous(), zeros.contiguous())
    compiled: Any = _search
    compiled(*(a.numpy() for a in arrays), np.float32(limits[0]), np.float32(limits[1]), best.numpy())
    return best


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _search(
    groups: Any, weighing: Any, scales: Array, zeros: Array, lowest: Any, highest: Any, best: Any
) -> None:
    for row in numba.prange(groups.shape[0]):
        for group in range(groups.shape[1]):
            values, weigh = groups[row, group], weighing[group]
            far = np.argmax(np.abs(values))
            least = np.float32(np.inf)
            for option in range(scales.shape[2]):
                scale = scales[row, group, option]
                zero = zeros[row, group, option] if zeros.size else np.float32(0)
                low, high = lowest - zero, highest - zero
                # What the farthest value alone loses beyond the range rules out most options.
                outside = max(values[far] - high * scale, low * scale - values[far], np.float32(0))
                if weigh[far] * outside * outside >= least:
                    continue
                error = _error(values, weigh, scale, low, high)
                if error < least:
                    least, best[row, group] = error, option


@numba.njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _error(values: Array, weigh: Any, scale: Array, low: Array, high: Array) -> Any:
    # Half way between two points both err alike: a product may do for a quotient here.
    error, inverse = np.float32(0), np.float32(1) / scale
    for i in range(len(values)):
        code = min(max(np.rint(values[i] * inverse), low), high)
        change = code * scale - values[i]
        error += weigh[i] * change * change
    return error
