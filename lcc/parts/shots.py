"""Which rows of the training split are shown before a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lcc.core.errors import DataError
from lcc.parts.filling import Row
from lcc.parts.rows import in_turns

if TYPE_CHECKING:
    from lcc.parts.task import Task


def drawn(task: Task, rows: Iterable[Row], seed: int, num: int) -> list[Row]:
    """`num` shots by hash, from the shorter half: the same for every model.

    Where the task has labels, no label is shown twice more often than another.
    """
    if not num:
        return []
    short = sorted(rows, key=lambda row: len(task.text(row)))
    short = short[: max(num, len(short) // 2)]
    if len(short) < num:
        raise DataError(f"{num} shots asked, the training split has {len(short)} rows")
    ranked = sorted(short, key=lambda row: _rank(row, seed))
    return ranked[:num] if task.labels is None else in_turns(ranked, task.completion)[:num]


def _rank(row: Row, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{row.get('id')}".encode()).hexdigest()
