"""Prefetched items come in order, one ahead of use, with their errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lcc.training.batches import moved, prefetched


def test_items_come_in_order_and_are_made_by_another_thread() -> None:
    makers = set()

    def items() -> Iterator[int]:
        for number in range(5):
            makers.add(threading.current_thread().name)
            yield number

    assert list(prefetched(items())) == [0, 1, 2, 3, 4]
    assert threading.current_thread().name not in makers


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    feed = prefetched(items())
    assert next(feed) == 0
    assert made[1].wait(timeout=60) and not made[2].is_set()
    feed.close()  # type: ignore[attr-defined]


def test_what_goes_wrong_in_the_thread_is_raised_in_the_loop() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("a bad row")

    feed = prefetched(items())
    assert next(feed) == 1
    with pytest.raises(ValueError, match="a bad row"):
        next(feed)


def test_a_feed_that_is_left_early_ends_its_thread() -> None:
    feed = prefetched(iter(range(100)))
    next(feed)
    feed.close()  # type: ignore[attr-defined]
    assert not any(t.name.startswith("prefetch") for t in threading.enumerate())


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    assert moved(tensor, "cpu") is tensor
