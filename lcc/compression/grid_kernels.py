"""The search for scales, compiled for CPUs. Imported only when one runs: numba takes half a second.

`engine.grids` has the plain torch that this is held to, and that other devices use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from lcc.compression.compiled_threads import follow_torch
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

# Not "arcp": a product with 1 / scale rounds to the other neighbour now and then.
FASTMATH = {"contract", "reassoc", "nsz", "nnan"}


def best_options(
    groups: Tensor, weighing: Tensor, scales: Tensor, zeros: Tensor, *, limits: tuple[int, int]
) -> Tensor:
    """Which of the options errs least in every group, (out, groups) int64.

    groups (out, groups, size), weighing (groups, size), scales and zeros (options, out, groups),
    all float32; a symmetric grid has zeros of zero.
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
            least = np.float32(np.inf)
            for option in range(len(scales)):
                scale, zero = scales[option, row, group], zeros[option, row, group]
                low, high = lowest - zero, highest - zero
                error = np.float32(0)
                for i in range(len(values)):
                    code = min(max(np.rint(values[i] / scale), low), high)
                    change = code * scale - values[i]
                    error += weigh[i] * change * change
                if error < least:
                    least, best[row, group] = error, option
