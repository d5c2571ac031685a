"""The points of a sweep as rows: what was chosen, what became of it, what it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lcc.core.report import read_run
from lcc.core.searching import Direction
from lcc.core.sweeps import Point, Result, Status, Sweep
from lcc.views import results, units
from lcc.views.results import Row


@dataclass(frozen=True)
class PointRow:
    """One point; `row` is the last model of its run, `values` what it is compared by."""

    point: Point
    status: Status
    result: Result | None
    row: Row | None = None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`#3`: short enough for a drawing, and the number that its log has."""
        return f"#{self.point.index + 1}"


def point_rows(sweep: Sweep) -> list[PointRow]:
    """Every point of `sweep`, in the order it was asked for."""
    found = [_point_row(sweep, point) for point in sweep.points]
    if sweep.objectives:
        return found
    # Nobody said what is better: the task's own first metric and the bytes are compared.
    metric = results.primary([r.row for r in found if r.row is not None])
    return [PointRow(r.point, r.status, r.result, r.row, _usual(r.row, metric)) for r in found]


def directions(sweep: Sweep, rows: Sequence[PointRow]) -> dict[str, Direction]:
    """What is compared and which way is better: the objectives, else quality and bytes."""
    if sweep.objectives:
        return dict(sweep.objectives)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    return {n: "minimize" if n == "bytes" or results.lower_is_better(n) else "maximize"
            for n in names}  # fmt: skip


def _point_row(sweep: Sweep, point: Point) -> PointRow:
    status, result = sweep.status(point), sweep.result(point.index)
    folder = sweep.folder.parent / result.run if result and result.run else None
    if status != "finished" or folder is None or not (folder / "run.json").is_file():
        return PointRow(point, status, result)
    last = results.rows(read_run(folder))[-1:]
    return PointRow(point, status, result, next(iter(last), None), dict(point.values))


def _usual(row: Row | None, metric: str | None) -> dict[str, float]:
    if row is None:
        return {}
    score = row.scores.get(metric) if metric else None
    quality = {str(metric): score.value} if score else {}
    return {**quality, **({"bytes": row.bytes} if row.bytes else {})}


def front(rows: Sequence[PointRow], better: dict[str, Direction]) -> list[PointRow]:
    """The points that no other beats: nowhere worse and somewhere better."""
    whole = [row for row in rows if better and better.keys() <= row.values.keys()]
    return [row for row in whole if not any(_beats(other, row, better) for other in whole)]


def _beats(one: PointRow, other: PointRow, better: dict[str, Direction]) -> bool:
    gains = [(one.values[n] - other.values[n]) * (1 if way == "maximize" else -1)
             for n, way in better.items()]  # fmt: skip
    return min(gains) >= 0 and max(gains) > 0


def figure_text(name: str, value: float | None) -> str:
    """A figure in the words of what it measures."""
    last = name.rpartition(".")[2]
    if value is None or not math.isfinite(value):
        return units.MISSING
    if last.endswith("bytes") and not last.startswith("bits_per"):
        return units.size(value)
    if last == "seconds":
        return units.duration(value)
    fine = "bits" if last.startswith("bits_per") or last.endswith("loss") else ""
    return units.count(value) if last == "parameters" else units.score(value, fine)
