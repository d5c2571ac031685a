"""How a point trains, read from the curve that its training step writes as it goes."""

from __future__ import annotations

import math

from lcc.core.store import ROOT
from lcc.core.tracking import CurveFile
from lcc.pipeline import Pipeline


def watched_curve(pipeline: Pipeline, column: str) -> dict[str, float]:
    """Training step → `column` of the first training step of `pipeline` that has such a column."""
    for step in pipeline.steps:
        if not getattr(step.stage, "trains", False):
            continue
        for place in ("work", "store"):
            rows = CurveFile(ROOT / place / step.key / "curves.jsonl").rows()
            found = {
                str(row["step"]): float(row[column]) for row in rows if _is_number(row, column)
            }
            if found:
                return found
    return {}


def _is_number(row: dict[str, object], column: str) -> bool:
    value = row.get(column)
    return isinstance(value, int | float) and math.isfinite(value)
