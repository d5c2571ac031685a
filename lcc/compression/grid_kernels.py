"""The search for scales, compiled for CPUs. Imported only when one runs: numba takes half a second.

`compression.grids` has the plain torch that this is held to, and that other devices use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from lcc.compression.compiled_threads import follow_torch
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

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
    compiled(*(a.numpy() for a in arrays), np.float32(limits[0]), np.float32(limits[1]),
             best.numpy())  # fmt: skip
    return best


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
def _search(
    groups: Any, weighing: Any, scales: Any, zeros: Any, lowest: Any, highest: Any, best: Any
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
def _error(values: Any, weigh: Any, scale: Any, low: Any, high: Any) -> Any:
    # Half way between two points both err alike: a product may do for a quotient here.
    error, inverse = np.float32(0), np.float32(1) / scale
    for i in range(len(values)):
        code = min(max(np.rint(values[i] * inverse), low), high)
        change = code * scale - values[i]
        error += weigh[i] * change * change
    return error
