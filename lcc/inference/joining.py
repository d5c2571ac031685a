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
    return _says_the_same(begin, [(first, second), (second, first)])


def goes_on(begin: Callable[[int], Any]) -> bool:
    """The same of a row that begins as another did, whose keys and values are copied for it."""
    return _says_the_same(begin, [([1, 2, 3, 1, 2], [1, 2, 3, 2])])


def _says_the_same(begin: Callable[[int], Any], cases: list[tuple[list[int], list[int]]]) -> bool:
    """Of each row and the one that was there before it."""
    try:
        alone = [_told(begin, row, others=[]) for row, _ in cases]
        together = [_told(begin, row, others=[other]) for row, other in cases]
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
