"""Parallel coordinates: every finished point as one line through what it chose and reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lcc.core.searching import Direction
from lcc.views import results, units
from lcc.views.document import Figure
from lcc.views.points import PointRow, figure_text, front
from lcc.views.svg import LETTER, Drawing

WIDTH, HEIGHT = 480.0, 330.0
TOP, BOTTOM, LEFT, RIGHT = 44.0, 30.0, 14.0, 62.0
MOST_AXES = 6  # more cannot be told apart on a telephone
MOST_CHOICES = 8  # of a listed word, by name
STEEP = 30.0  # a ratio of largest to smallest number from which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """One upright: a place in [0, 1] for every point, and the words at its marks."""

    title: str
    heights: dict[int, float]  # index of the point → 0 (below) … 1 (above)
    marks: list[tuple[float, str]]


def parallel(rows: Sequence[PointRow], better: dict[str, Direction]) -> Figure | None:
    """The figure, where at least two points finished and something varied."""
    whole = [row for row in rows if row.values and better.keys() <= row.values.keys()]
    reached = [_objective(whole, name, way) for name, way in list(better.items())[:3]]
    chosen = [axis for axis in map(lambda head: _choice(whole, head), _heads(whole)) if axis]
    shown = chosen[: MOST_AXES - len(reached)]
    axes = [*shown, *reached]
    if len(whole) < 2 or not shown or not reached:
        return None
    best = {row.point.index for row in front(whole, better)}
    drawing = Drawing(WIDTH, HEIGHT, "Choices and results of every point", _told(whole, better))
    gap = (WIDTH - LEFT - RIGHT) / (len(axes) - 1)
    xs = [LEFT + n * gap for n in range(len(axes))]
    for row in sorted(whole, key=lambda row: row.point.index in best):
        at = [(x, _y(axis.heights[row.point.index])) for x, axis in zip(xs, axes, strict=True)]
        style = "thread best" if row.point.index in best else "thread"
        drawing.line(at, style, title=_hint(row, better))
    for number, (x, axis) in enumerate(zip(xs, axes, strict=True)):
        _upright(drawing, x, axis, number, gap)
    left_out = len(chosen) - len(shown)
    rest = f" {left_out} more words vary; the table has them." if left_out else ""
    return Figure(drawing.render(), "Every line is a finished point: what it chose, and what it "
                  "reached on the last axes, better above. Strong lines are points that no other "
                  f"beats in everything.{rest}")  # fmt: skip


def _y(height: float) -> float:
    return HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM)


def _heads(rows: Sequence[PointRow]) -> list[str]:
    """The words that differ between points."""
    heads = list(dict.fromkeys(head for row in rows for head in row.point.chosen))
    return [h for h in heads if len({row.point.chosen.get(h) for row in rows}) > 1]


def _choice(rows: Sequence[PointRow], head: str) -> Axis | None:
    texts = {row.point.index: row.point.chosen[head] for row in rows}
    numbers = {
        index: value for index, text in texts.items() if (value := _number(text)) is not None
    }
    title = short(head, [h for row in rows for h in row.point.chosen])
    if len(numbers) == len(texts):
        heights, marks = _numeric(numbers, lambda value: f"{value:.3g}")
        return Axis(title, heights, marks)
    names = list(dict.fromkeys(texts.values()))
    places = {name: n / max(len(names) - 1, 1) for n, name in enumerate(names)}
    marks = [(place, name) for name, place in places.items()][:MOST_CHOICES]
    return Axis(title, {index: places[text] for index, text in texts.items()}, marks)


def _objective(rows: Sequence[PointRow], name: str, way: Direction) -> Axis:
    """Better above, whichever way better is."""
    values = {row.point.index: row.values[name] for row in rows}
    heights, marks = (
        _numeric(values, lambda value: figure_text(name, value)) if values else ({}, [])
    )
    if way == "minimize":
        heights = {index: 1 - height for index, height in heights.items()}
        marks = [(1 - height, text) for height, text in marks]
    return Axis(results.label(name), heights, marks)


def _numeric(
    values: dict[int, float], text: object
) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Places between the smallest and the largest number, by ratio where they are far apart."""
    assert callable(text)
    low, high = min(values.values()), max(values.values())
    is_log = low > 0 and high / low >= STEEP
    place = math.log if is_log else float
    start, spread = place(low), (place(high) - place(low)) or 1.0
    heights = {index: (place(value) - start) / spread for index, value in values.items()}
    if low == high:
        return dict.fromkeys(values, 0.5), [(0.5, text(low))]
    middle = math.exp((math.log(low) + math.log(high)) / 2) if is_log else (low + high) / 2
    return heights, [(0.0, text(low)), (0.5, text(middle)), (1.0, text(high))]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def short(head: str, heads: Sequence[str]) -> str:
    """The last part of a word that tells it from the others: `lr` for `stages.finetune.lr`."""
    parts, others = head.lstrip("+").split("."), {h.lstrip("+") for h in heads} - {head.lstrip("+")}
    for n in range(1, len(parts)):
        tail = ".".join(parts[-n:])
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return head.lstrip("+")


def _upright(drawing: Drawing, x: float, axis: Axis, number: int, gap: float) -> None:
    """An axis with its words to the right, where they stand on paper of their own."""
    drawing.line([(x, _y(0)), (x, _y(1))], "axis")
    is_last = x + gap > WIDTH
    # Two rows of titles, in turns: neighbours' words would run into one another.
    title = _cut(axis.title, gap + RIGHT if is_last else 2 * gap)
    anchor = "start" if number == 0 else "end" if is_last else "middle"
    drawing.label(WIDTH if is_last else x, TOP - (28 if number % 2 else 12), title, anchor=anchor,
                  style="name")  # fmt: skip
    for height, text in axis.marks:
        words = _cut(text, RIGHT if is_last else gap)
        drawing.label(x + 5, _y(height) + 4, words, style="mark thin")


def _cut(words: str, room: float) -> str:
    """As many letters as have room."""
    most = max(int((room - 8) / LETTER), 2)
    return words if len(words) <= most else f"{words[: most - 1]}…"


def _hint(row: PointRow, better: dict[str, Direction]) -> str:
    reached = ", ".join(f"{results.label(n)} {figure_text(n, row.values[n])}" for n in better)
    return units.clean(f"{row.name} {row.point.label}: {reached}")


def _told(rows: Sequence[PointRow], better: dict[str, Direction]) -> str:
    return "; ".join(_hint(row, better) for row in rows)
