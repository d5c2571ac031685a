"""Whether answers may be written together: asked of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def joins(begin: Callable[[int], Any]) -> bool:
    """Whether a row that joins another mid-way says what it says alone.

    `begin` gives fresh passes for so many rows, whose `take` and `advance` give logits by row.
    """
    first, second = [1, 2, 3, 1], [2, 1]
    try:
        alone = [_told(begin, row, others=[]) for row in (first, second)]
        together = [_told(begin, first, others=[second]), _told(begin, second, others=[first])]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError):
        return False  # Its cache is of another kind.
    scale = float(torch.stack(alone).abs().max())
    return all(torch.allclose(a, b, rtol=0, atol=1e-3 * scale + 1e-6)
               for a, b in zip(alone, together, strict=True))  # fmt: skip


def _told(begin: Callable[[int], Any], row: list[int], others: list[list[int]]) -> Tensor:
    """Logits (3, vocabulary) of a row's prompt and two tokens more; others were there before it."""
    passes = begin(1 + len(others))
    for other in others:
        passes.take([other])
        passes.advance([1])
    told = [passes.take([row])[-1]]
    told += [passes.advance([1] * len(others) + [token])[-1] for token in (2, 1)]
    return torch.stack(told)
