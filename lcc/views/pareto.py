"""A sweep's points by quality, bytes and speed: who is beaten by whom, as words and as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lcc.views import results, units
from lcc.views.charts import HEIGHT, UNITS, WIDTH, dots
from lcc.views.document import Cell, Column, Figure, Table
from lcc.views.results import Row
from lcc.views.svg import BOTTOM, LEFT, RIGHT, TOP, Drawing, Scale, padded
from lcc.views.tables import results_table

NOISE = 0.05  # speeds that differ by less count as equal
STEEP = 20.0  # a ratio of best to worst figure from which the axis is logarithmic
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLUMNS, LINES = 64, 14  # of the chart on a terminal


@dataclass(frozen=True)
class Standing:
    """One point and the points that are at least as good in everything, and better in something."""

    row: Row
    beaten_by: tuple[str, ...]

    @property
    def word(self) -> str:
        return f"dominated by {self.beaten_by[0]}" if self.beaten_by else "on the front"


def standings(found: Sequence[Row], metric: str) -> list[Standing]:
    """Every point that was judged and weighed, with what dominates it."""
    shown = [row for row in found if metric in row.scores and row.bytes]
    return [Standing(row, tuple(other.checkpoint for other in shown
                                if other is not row and _beats(other, row, metric)))
            for row in shown]  # fmt: skip


def _beats(one: Row, other: Row, metric: str) -> bool:
    sign = -1 if results.lower_is_better(metric) else 1
    quality = sign * (one.scores[metric].value - other.scores[metric].value)
    fewer = (other.bytes or 0) - (one.bytes or 0)
    speed = _speed_gain(one, other)
    return quality >= 0 and fewer >= 0 and speed >= 0 and (quality > 0 or fewer > 0 or speed > 0)


def _speed_gain(one: Row, other: Row) -> float:
    """How much faster, as a ratio less one; zero within the noise or where nobody measured."""
    ours, theirs = one.speed.rate, other.speed.rate
    if not ours or not theirs:
        return 0.0
    gain = ours / theirs - 1
    return 0.0 if abs(gain) < NOISE else gain


def sweep_table(found: Sequence[Row], metric: str) -> Table:
    """The results of all points, each with its standing."""
    inner = results_table(found, max_metrics=4)
    told = {s.row.checkpoint: s for s in standings(found, metric)}
    rows = [[*cells[:1], _standing(told.get(row.checkpoint)), *cells[1:]]
            for row, cells in zip(found, inner.rows, strict=True)]  # fmt: skip
    columns = [Column("point", "name"), Column("standing", "prose"), *inner.columns[1:]]
    return Table("Every point on the same samples; ranges are 95 % intervals.", columns, rows)


def _standing(standing: Standing | None) -> Cell:
    if standing is None:
        return Cell(units.MISSING)
    return Cell(units.clean(standing.word), tone="" if standing.beaten_by else "good")


def chart(found: Sequence[Row], metric: str) -> list[str]:
    """Quality over bytes in letters, capital ones on the front; then who is who."""
    shown = standings(found, metric)
    if len(shown) < 2:
        return []
    marks = {s.row.checkpoint: _mark(i, s) for i, s in enumerate(shown)}
    ys = _heights([s.row.scores[metric].value for s in shown], metric)
    largest = max(s.row.bytes or 0 for s in shown)
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    for standing, y in zip(shown, ys, strict=True):
        x = round((standing.row.bytes or 0) / largest * (COLUMNS - 1))
        line = grid[LINES - 1 - round(y * (LINES - 1))]
        while x < COLUMNS - 1 and line[x] != " ":
            x += 1  # a point that stands on another is shown beside it
        line[x] = marks[standing.row.checkpoint]
    name = results.label(metric)
    better = "lower" if results.lower_is_better(metric) else "higher"
    drawn = [f"  {name} (better is up; {better} is better)"]
    drawn += [f"  │{''.join(line).rstrip()}" for line in grid]
    drawn.append("  └" + "─" * COLUMNS)
    drawn.append(f"   0{'bytes on disk'.center(COLUMNS - 12)}{units.size(largest):>10}")
    return drawn + [_legend(s, marks[s.row.checkpoint], metric) for s in shown]


def _mark(index: int, standing: Standing) -> str:
    letter = LETTERS[index % len(LETTERS)]
    return letter if standing.beaten_by else letter.upper()


def _heights(values: Sequence[float], metric: str) -> list[float]:
    """Each figure's place between the worst (0) and the best (1)."""
    if min(values) > 0 and max(values) / min(values) > STEEP:
        values = [math.log(value) for value in values]
    low, high = min(values), max(values)
    up = [(value - low) / ((high - low) or 1.0) for value in values]
    return [1 - height for height in up] if results.lower_is_better(metric) else up


def _legend(standing: Standing, mark: str, metric: str) -> str:
    row = standing.row
    score = row.scores[metric]
    speed = f", {units.rate(row.speed.rate)} {row.speed.unit}" if row.speed.rate else ""
    return units.clean(f"  {mark} {row.checkpoint}: {units.score(score.value, score.unit)}, "
                       f"{units.size(row.bytes)}{speed}; {standing.word}")  # fmt: skip


def figure(found: Sequence[Row], metric: str) -> Figure | None:
    """The same as a drawing; the line joins the front, hollow dots are dominated."""
    shown = standings(found, metric)
    if len(shown) < 2:
        return None
    name, rows = results.label(metric), [s.row for s in shown]
    values = [row.scores[metric].value for row in rows]
    told = "; ".join(_legend(s, "", metric).strip() for s in shown)
    drawing = Drawing(WIDTH, HEIGHT, f"{name} against size on disk", told)
    largest = max(row.bytes or 0 for row in rows)
    one, unit = next(((size, u) for size, u in UNITS if largest > 2 * size), (1.0, "B"))
    # A ruined point must not press all others into one line: it is drawn at the edge.
    edge = 4 * min(values) if results.lower_is_better(metric) and min(values) > 0 else max(values)
    low, high = padded([min(v, edge) for v in values], floor=0.0 if min(values) >= 0 else None)
    x = Scale(0, 1.1 * largest / one, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    drawing.upward(y, name)
    drawing.across(x, f"{unit} on disk")
    at = [(x((r.bytes or 0) / one), y(min(v, edge))) for r, v in zip(rows, values, strict=True)]
    front = sorted(p for p, s in zip(at, shown, strict=True) if not s.beaten_by)
    drawing.line(front, "path")
    dots(drawing, rows, at, metric, hollow={s.row.checkpoint for s in shown if s.beaten_by})
    better = "lower" if results.lower_is_better(metric) else "higher"
    cut = f" Points worse than {units.score(edge)} stand at the edge." if max(values) > edge else ""
    caption = (
        f"{name} ({better} is better) and bytes on disk. The dashed line joins the points that no"
        " other beats in quality, bytes and speed; hollow ones are dominated. A larger dot is"
        f" faster.{cut}"
    )
    return Figure(drawing.render(), caption)
