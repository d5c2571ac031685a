"""Compiled kernels on as many threads as torch has; imported with numba, only when one runs."""

from __future__ import annotations

import numba

from lcc.core.lazy import torch


def follow_torch() -> None:
    """Give numba's next parallel loops torch's number of threads, as far as it has them."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))
