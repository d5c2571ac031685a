"""What a look at prepared data tells: its format, its lengths, and what is odd about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcc.core.errors import DataError
from lcc.core.nearest import did_you_mean
from lcc.parts.cleaning import num_words
from lcc.parts.data import Counts
from lcc.parts.rows import Row, text_fields
from lcc.parts.splits import SPLITS

PERCENTILES = (5, 50, 95, 100)


def detected_format(rows: Sequence[Row]) -> str:
    """What kind of rows these are, by their fields."""
    if not rows:
        return "no rows"
    texts = text_fields(rows[0])
    named = ", ".join(texts)
    if "label" in rows[0]:
        labels = sorted({str(row["label"]) for row in rows})
        shown = ", ".join(labels[:8]) + (" …" if len(labels) > 8 else "")
        return f"labelled text ({named} → {len(labels)} labels: {shown})"
    if {"source", "target"} <= set(texts):
        return f"pairs ({named})"
    return f"plain text ({named})" if len(texts) == 1 else f"texts ({named})"


def lengths(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Words of each text field at some percentiles; a Chinese character counts as a word."""
    found = []
    for name in text_fields(rows[0]) if rows else []:
        sizes = sorted(num_words(str(row[name])) for row in rows)
        at = {f"p{p}" if p < 100 else "longest": sizes[(len(sizes) - 1) * p // 100]
              for p in PERCENTILES}  # fmt: skip
        found.append({"field": name, **at})
    return found


def warnings(counts: Counts) -> list[str]:
    """Sentences about what will make training or its measurement worse than it looks."""
    found = []
    kept = sum(counts.rows.values())
    if counts.read and kept < counts.read / 4:
        found.append(f"only {kept} of {counts.read} rows were kept; see what removed the others.")
    test = counts.rows["test"]
    if 0 < test < 100:
        found.append(f"{test} test rows decide little: intervals will be wide; 300 are better.")
    for name in SPLITS[1:]:
        lacking = set(counts.labels.get("train", {})) - set(counts.labels.get(name, {}))
        if counts.rows[name] and lacking:
            found.append(f"{name} has no row labelled {', '.join(sorted(lacking))}.")
    return found


def require_fields(rows: Sequence[Row], fields: Sequence[str], *, task: str) -> None:
    """Raise DataError when the rows lack a field that the task's template shows."""
    for name in fields:
        if rows and name not in rows[0]:
            raise DataError(
                f"task '{task}' needs the field {name!r}; the rows have "
                f"{', '.join(map(repr, rows[0]))}{did_you_mean(name, rows[0])} "
                f"Map it with dataset.fields, e.g. dataset.fields.{name}=COLUMN."
            )
