"""Batches made ready while the one before is computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """`items`, each made by a thread while the one before is in use; its errors are raised here.

    Whatever makes an item must not draw from the global random state, which the user of the one
    before draws from meanwhile.
    """
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        pending = thread.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def moved(tensor: Tensor, device: str) -> Tensor:
    """On `device`; to CUDA through pinned memory, without waiting for the copy."""
    if device.startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
