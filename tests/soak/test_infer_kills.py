"""A large file is answered row for row whatever kills the process, with and without workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_answers_have_neither_gap_nor_duplicate(
    workers: int,
    harness: Callable[..., dict[str, Any]],
    amount: Callable[[int, int], int],
    note: Callable[..., None],
) -> None:
    found = harness("infer_kills.py", amount(100_000, 200), amount(24, 4), workers)
    assert found["killed"] >= amount(16, 2)
    assert found["asked"] >= 1
    note("infer", **found)
