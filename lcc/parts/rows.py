"""Rows: plain dicts with `id`, `doc` and the dataset's own fields, and what readers owe them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lcc.core.errors import DataError
from lcc.core.nearest import did_you_mean
from lcc.parts.packages import Requirement

Row = dict[str, Any]
R = TypeVar("R")

KEPT_APART = ("id", "doc", "split", "label")
USUAL = ("source", "target", "text")
WORDLESS = re.compile(r"[\W_]+")


class Reader(Protocol):
    """Where rows come from. Implementations are cards on the shelf `readers`."""

    def requirements(self) -> tuple[Requirement, ...]:
        """What must be fetched first; empty for local files."""

    def fingerprint(self) -> str:
        """Digest of the bytes that will be read; the same whether they were fetched yet or not."""

    def read(self) -> Iterator[Row]:
        """Every row, in a fixed order, with the source's own column names."""


def text_fields(row: Mapping[str, Any]) -> list[str]:
    """The fields whose text is cleaned, compared and fenced: source, target and text where a row
    has any of them, else every field that holds text. Others are only carried along.
    """
    names = [name for name, value in row.items()
             if name not in KEPT_APART and (value is None or isinstance(value, str))]  # fmt: skip
    return [name for name in names if name in USUAL] or names


def in_turns(rows: Iterable[R], label_of: Callable[[R], str]) -> list[R]:
    """One row of each label after another, in the order given."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        seen[label := label_of(row)] += 1
        turns.append((seen[label], row))
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def normalised(text: str) -> str:
    """What two texts share when they differ only in case, width, spaces and punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return WORDLESS.sub("", folded) or folded.strip()


def short_digest(*parts: str) -> str:
    """16 hex characters that depend on `parts` and on nothing else."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def with_fields(rows: Iterable[Row], fields: Mapping[str, str], *, where: str) -> Iterator[Row]:
    """Rows under our names: `fields` maps our name → the source's column.

    Raises DataError naming the columns found when one is missing.
    """
    for number, row in enumerate(rows, start=1):
        if not fields:
            yield row
            continue
        for column in fields.values():
            if column not in row:
                raise DataError(
                    f"{where}: row {number} has no column {column!r}; found "
                    f"{', '.join(map(repr, row))}{did_you_mean(column, row)} Set dataset.fields."
                )
        extra: Row = {name: row[name] for name in ("id", "doc", "split") if name in row}
        yield {**extra, **{ours: row[column] for ours, column in fields.items()}}


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file that we wrote ourselves."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def stream_rows(path: Path, start: int = 0) -> Iterator[tuple[int, Row]]:
    """Each row from byte `start` on with the byte where the next one begins, one held at a time."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            yield start, json.loads(line)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, keys in their order."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.chmod(0o644)
