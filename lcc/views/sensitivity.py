"""What a sensitivity step found, as one table: parts down, actions across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcc.views import units
from lcc.views.document import Cell, Column, Table


def sensitivity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """KL to the whole model for every part and action, and below it the bytes it saves."""
    actions = list(dict.fromkeys(str(row["action"]) for row in rows))
    found = {(row["part"], row["action"]): row for row in rows}
    parts = list(dict.fromkeys(str(row["part"]) for row in rows))
    lines = [[Cell(units.clean(part)), *(_cell(found.get((part, a))) for a in actions)]
             for part in parts]  # fmt: skip
    caption = (
        "Mean KL to the model as it is, in nats, when one part alone is changed; below it the"
        " change of its bytes."
    )
    columns = [Column("part", "name"), *(Column(units.clean(a)) for a in actions)]
    return Table(caption, columns, lines)


def _cell(row: dict[str, Any] | None) -> Cell:
    if row is None or row["kl"] is None:
        return Cell(units.MISSING)
    change = row["bytes"]
    sign = "" if not change else units.MINUS if change < 0 else "+"
    return Cell(_figure(row["kl"]), f"{sign}{units.size(abs(change))}")


def _figure(kl: float) -> str:
    """KLs lie orders of magnitude apart: two significant figures, or in powers of ten."""
    return f"{kl:.2g}" if kl >= 1e-4 or kl == 0 else f"{kl:.1e}"
