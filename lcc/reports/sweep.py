"""Report of a sweep: what is best, every point, what failed and where its log lies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcc.config.search_space import Direction
from lcc.core import format
from lcc.reports import results
from lcc.reports.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Figures,
    Section,
    Table,
    Tone,
)
from lcc.reports.results import CheckpointRow, results_table
from lcc.reports.svg import BOTTOM, LEFT, LETTER, RIGHT, TOP, AxisScale, Drawing, padded
from lcc.store.runs import read_run
from lcc.store.sweeps import DRIVER, Point, Result, Status, Sweep

# The points of a sweep as rows: what was chosen, what became of it, what it reached.


@dataclass(frozen=True)
class PointRow:
    """One point; `row` is the last model of its run, `values` what it is compared by."""

    point: Point
    status: Status
    result: Result | None
    row: CheckpointRow | None = None
    values: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`#3`: short enough for a drawing, and the number that its log has."""
        return f"#{self.point.index + 1}"


def point_rows(sweep: Sweep) -> list[PointRow]:
    """Every point of `sweep`, in the order of its number."""
    points = [_point_row(sweep, point) for point in sweep.points]
    if sweep.objectives:
        return points
    # Nobody said what is better: the task's own first metric and the bytes are compared.
    metric = results.primary([r.row for r in points if r.row is not None])
    return [PointRow(r.point, r.status, r.result, r.row, _usual(r.row, metric)) for r in points]


def directions(sweep: Sweep, rows: Sequence[PointRow]) -> dict[str, Direction]:
    """What is compared and which way is better: the objectives, else quality and bytes."""
    if sweep.objectives:
        return dict(sweep.objectives)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    scored = [row.row for row in rows if row.row is not None]
    lower = {name for name in names if name == "bytes" or results.lower_is_better(name, scored)}
    return {name: "minimize" if name in lower else "maximize" for name in names}


def _label(name: str, rows: Sequence[PointRow]) -> str:
    return results.label(name, [row.row for row in rows if row.row is not None])


def _point_row(sweep: Sweep, point: Point) -> PointRow:
    status, result = sweep.status(point), sweep.result(point.index)
    folder = sweep.folder.parent / result.run if result and result.run else None
    if status != "finished" or folder is None or not (folder / "run.json").is_file():
        return PointRow(point, status, result)
    last = results.rows(read_run(folder))[-1:]
    return PointRow(point, status, result, next(iter(last), None), dict(point.values))


def _usual(row: CheckpointRow | None, metric: str | None) -> dict[str, float]:
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
    gains = [
        (one.values[n] - other.values[n]) * (1 if way == "maximize" else -1) for n, way in better.items()
    ]
    return min(gains) >= 0 and max(gains) > 0


def figure_text(name: str, value: float | None) -> str:
    """A figure in the words of what it measures."""
    last = name.rpartition(".")[2]
    if value is None or not math.isfinite(value):
        return format.MISSING
    if last.endswith("bytes") and not last.startswith("bits_per"):
        return format.size(value)
    if last == "seconds":
        return format.duration(value)
    fine = "bits" if last.startswith("bits_per") or last.endswith("loss") else ""
    return format.count(value) if last == "parameters" else format.score(value, fine)


# Parallel coordinates: every finished point as one line through what it chose and reached.

PLOT_WIDTH, PLOT_HEIGHT = 480.0, 330.0
PLOT_TOP, PLOT_BOTTOM, PLOT_LEFT, PLOT_RIGHT = 44.0, 30.0, 14.0, 62.0
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
    drawing = Drawing(
        PLOT_WIDTH,
        PLOT_HEIGHT,
        "Choices and results of every point",
        "; ".join(_hint(row, better) for row in whole),
    )
    gap = (PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT) / (len(axes) - 1)
    xs = [PLOT_LEFT + n * gap for n in range(len(axes))]
    for row in sorted(whole, key=lambda row: row.point.index in best):
        at = [(x, _y(axis.heights[row.point.index])) for x, axis in zip(xs, axes, strict=True)]
        style = "thread best" if row.point.index in best else "thread"
        drawing.line(at, style, title=_hint(row, better))
    for number, (x, axis) in enumerate(zip(xs, axes, strict=True)):
        _upright(drawing, x, axis, number, gap)
    left_out = len(chosen) - len(shown)
    rest = f" {left_out} more words vary; the table has them." if left_out else ""
    return Figure(
        drawing.render(),
        "Every line is a finished point: what it chose, and what it "
        "reached on the last axes, better above. Strong lines are points that no other "
        f"beats in everything.{rest}",
    )


def _y(height: float) -> float:
    return PLOT_HEIGHT - PLOT_BOTTOM - height * (PLOT_HEIGHT - PLOT_TOP - PLOT_BOTTOM)


def _heads(rows: Sequence[PointRow]) -> list[str]:
    """The words that differ between points."""
    heads = list(dict.fromkeys(head for row in rows for head in row.point.chosen))
    return [h for h in heads if len({row.point.chosen.get(h) for row in rows}) > 1]


def _choice(rows: Sequence[PointRow], head: str) -> Axis | None:
    texts = {row.point.index: row.point.chosen[head] for row in rows}
    numbers = {index: value for index, text in texts.items() if (value := _number(text)) is not None}
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
    heights, marks = _numeric(values, lambda value: figure_text(name, value)) if values else ({}, [])
    if way == "minimize":
        heights = {index: 1 - height for index, height in heights.items()}
        marks = [(1 - height, text) for height, text in marks]
    return Axis(_label(name, rows), heights, marks)


def _numeric(values: dict[int, float], text: object) -> tuple[dict[int, float], list[tuple[float, str]]]:
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
    """The last part of a word that distinguishes it from the others: `lr` for `stages.finetune.lr`."""
    parts, others = head.lstrip("+").split("."), {h.lstrip("+") for h in heads} - {head.lstrip("+")}
    for n in range(1, len(parts)):
        tail = ".".join(parts[-n:])
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return head.lstrip("+")


def _upright(drawing: Drawing, x: float, axis: Axis, number: int, gap: float) -> None:
    """An axis with its words to the right, where they stand on paper of their own."""
    drawing.line([(x, _y(0)), (x, _y(1))], "axis")
    is_last = x + gap > PLOT_WIDTH
    # Two rows of titles, in turns: neighbours' words would run into one another.
    title = _cut(axis.title, gap + PLOT_RIGHT if is_last else 2 * gap)
    anchor = "start" if number == 0 else "end" if is_last else "middle"
    drawing.label(
        PLOT_WIDTH if is_last else x,
        PLOT_TOP - (28 if number % 2 else 12),
        title,
        anchor=anchor,
        style="name",
    )
    for height, text in axis.marks:
        words = _cut(text, PLOT_RIGHT if is_last else gap)
        drawing.label(x + 5, _y(height) + 4, words, style="mark thin")


def _cut(words: str, room: float) -> str:
    """As many letters as have room."""
    most = max(int((room - 8) / LETTER), 2)
    return words if len(words) <= most else f"{words[: most - 1]}…"


# How a search went: objectives against each other, and the best figure so far.

WIDTH, HEIGHT = 480.0, 320.0
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def front_figure(rows: Sequence[PointRow], better: dict[str, Direction]) -> Figure | None:
    """The first objective over the second, the front joined; None below two points or goals."""
    whole = [row for row in rows if better and better.keys() <= row.values.keys()]
    if len(whole) < 2 or len(better) < 2:
        return None
    up, across = list(better)[:2]
    best = front(whole, better)
    description = "; ".join(_hint(row, better) for row in whole)
    drawing = Drawing(WIDTH, HEIGHT, f"{_label(up, whole)} against {_label(across, whole)}", description)
    one, unit = _unit(across, [row.values[across] for row in whole])
    xs = [row.values[across] / one for row in whole]
    ys = [row.values[up] for row in whole]
    x = AxisScale(*padded(xs, floor=0.0 if min(xs) >= 0 else None), LEFT, WIDTH - RIGHT)
    y = AxisScale(*padded(ys, floor=0.0 if min(ys) >= 0 else None), HEIGHT - BOTTOM, TOP)
    drawing.upward(y, _label(up, whole))
    drawing.across(x, f"{_label(across, whole)}{unit}")
    at = {row.point.index: (x(row.values[across] / one), y(row.values[up])) for row in whole}
    drawing.line(sorted(at[row.point.index] for row in best), "path")
    for row in whole:
        px, py = at[row.point.index]
        style = "dot" if row in best else "hollow"
        drawing.dot(px, py, radius=5, style=style, title=_hint(row, better))
        is_right = px > WIDTH - 60
        drawing.label(
            px + (-8 if is_right else 8),
            py - 6,
            row.name,
            style="mark",
            anchor="end" if is_right else "start",
        )
    ways = ", ".join(
        f"{_label(n, whole)} {'higher' if w == 'maximize' else 'lower'} is better"
        for n, w in list(better.items())[:2]
    )
    return Figure(
        drawing.render(),
        f"{ways}. The dashed line joins the points that no other beats "
        "(the Pareto front); hollow ones are beaten.",
    )


def history_figure(rows: Sequence[PointRow], better: dict[str, Direction]) -> Figure | None:
    """The first objective of every point in the order of asking, and the best one so far."""
    name = next(iter(better), None)
    whole = [row for row in rows if name is not None and name in row.values]
    if name is None or len(whole) < 3:
        return None
    values = [row.values[name] for row in whole]
    pick = max if better[name] == "maximize" else min
    so_far = [pick(values[: n + 1]) for n in range(len(values))]
    label = _label(name, whole)
    drawing = Drawing(
        WIDTH, HEIGHT - 60, f"{label} of point after point", f"the best of {len(values)} so far"
    )
    one, unit = _unit(name, values)
    x = AxisScale(1, max(whole[-1].point.index + 1, 2), LEFT, WIDTH - RIGHT)
    scaled = [value / one for value in values]
    y = AxisScale(*padded(scaled), drawing.height - BOTTOM, TOP)
    drawing.upward(y, f"{label}{unit}", num=4)
    drawing.across(x, "point", whole=True)
    drawing.line(
        _stairs([(x(row.point.index + 1), y(value / one)) for row, value in zip(whole, so_far, strict=True)]),
        "curve",
    )
    for row, value in zip(whole, scaled, strict=True):
        drawing.dot(
            x(row.point.index + 1), y(value), radius=3.5, style="dot", title=_hint(row, {name: better[name]})
        )
    best = figure_text(name, so_far[-1])
    return Figure(
        drawing.render(),
        f"{label} of every finished point in the order of asking; the line is the best so far, {best}.",
    )


def _stairs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Level until the next point, then up or down."""
    drawn = points[:1]
    for x, y in points[1:]:
        drawn += [(x, drawn[-1][1]), (x, y)]
    return drawn


def _unit(name: str, values: Sequence[float]) -> tuple[float, str]:
    """A size that keeps an axis of bytes readable, and its name."""
    if not name.rpartition(".")[2].endswith("bytes"):
        return 1.0, ""
    size, unit = next(((size, unit) for size, unit in UNITS if max(values) > 2 * size), (1.0, "B"))
    return size, f", {unit}"


def _hint(row: PointRow, better: dict[str, Direction]) -> str:
    reached = ", ".join(f"{_label(n, [row])} {figure_text(n, row.values[n])}" for n in better)
    return f"{row.name} {row.point.label}: {reached}"


TONES: dict[str, Tone] = {"finished": "good", "failed": "bad", "preempted": "unclear", "pruned": "unclear"}


def page(sweep: Sweep) -> Document:
    """The whole report of `sweep`."""
    rows = point_rows(sweep)
    better = directions(sweep, rows)
    parts: list[tuple[str, list[Block]]] = [
        ("Results", [*_figures(rows, better), points_table(sweep, rows)]),
        ("Not finished", list(_unfinished(sweep, rows))),
        ("Last checkpoints", list(_checkpoints(rows))),
        ("Reproduce", [Code(format.clean(sweep.command)), Bullets(_settings(sweep))]),
    ]
    sections = [Section(title, blocks) for title, blocks in parts if blocks]
    started = format.clean(sweep.started).replace("T", " ").removesuffix("Z")
    subtitle = f"{started} UTC · {sweep.folder.name} · {counted(rows)}"
    return Document(
        f"{format.clean(sweep.name)}: sweep", format.clean(subtitle), headline(rows, better), sections
    )


def counted(rows: Sequence[PointRow]) -> str:
    """`6 points: 4 finished, 1 failed, 1 running`."""
    counts = Counter(row.status for row in rows)
    word = "point" if len(rows) == 1 else "points"
    states = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    return f"{len(rows)} {word}: {states}" if rows else "no point yet"


def headline(rows: Sequence[PointRow], better: dict[str, Direction]) -> str:
    """The best point in one sentence."""
    best = front(rows, better)
    if not best:
        return "No point has finished with a figure to compare yet."
    name, way = next(iter(better.items()))
    pick = max if way == "maximize" else min
    top = pick(best, key=lambda row: row.values[name])
    reached = ", ".join(f"{_label(n, best)} {figure_text(n, top.values[n])}" for n in better)
    rest = f" {len(best)} points are beaten by none." if len(best) > 1 else ""
    return format.clean(f"Best {_label(name, best)}: {top.name} {top.point.label} ({reached}).{rest}")


def points_table(sweep: Sweep, rows: Sequence[PointRow]) -> Table:
    """One row a point: its number, what it chose, what became of it and what it reached."""
    better = directions(sweep, rows)
    heads = list(dict.fromkeys(head for row in rows for head in row.point.chosen))
    best = front(rows, better) if len(better) > 1 else []
    columns = [
        Column("point", "name"),
        *(Column(short(h, heads), "name") for h in heads),
        Column("status", "name"),
        *(Column(_label(n, rows)) for n in better),
        Column("time"),
    ]
    lines = []
    for row in rows:
        tone = TONES.get(row.status, "")
        status = Cell(row.status, "on the front" if row in best else "", tone)
        seconds = row.result.seconds if row.result and row.result.seconds else None
        chosen = [Cell(format.clean(row.point.chosen.get(head, ""))) for head in heads]
        reached = [Cell(figure_text(name, row.values.get(name))) for name in better]
        lines.append([Cell(row.name), *chosen, status, *reached, Cell(format.duration(seconds))])
    return Table(f"{counted(rows)}. A point's log is points/NNN.log, counted from 000.", columns, lines)


def _figures(rows: Sequence[PointRow], better: dict[str, Direction]) -> Iterator[Block]:
    drawn = [parallel(rows, better), front_figure(rows, better), history_figure(rows, better)]
    figures = [figure for figure in drawn if figure is not None]
    if figures:
        yield Figures(figures)


def _unfinished(sweep: Sweep, rows: Sequence[PointRow]) -> Iterator[Block]:
    """What went wrong, where to read more, and how to go on."""
    bad = [row for row in rows if row.status in ("failed", "preempted")]
    if bad:
        yield Bullets(
            [
                f"{row.name} {format.clean(row.point.label)}: {_error(row)} Log: {sweep.log(row.point.index)}"
                for row in bad
            ],
            tone="bad",
        )
    if any(row.status not in ("finished", "pruned") for row in rows):
        yield Bullets(["The same command tries again what is not finished, and nothing else."])


def _error(row: PointRow) -> str:
    error = row.result.error if row.result and row.result.error else "ended without a word."
    return format.clean(error if error.endswith((".", "?")) else f"{error}.")


def _checkpoints(rows: Sequence[PointRow]) -> Iterator[Block]:
    """The last model of every finished point with all its figures and intervals."""
    whole = [row for row in rows if row.row is not None]
    if not whole:
        return
    inner = results_table([row.row for row in whole if row.row is not None])
    lines = [
        [Cell(f"{row.name} {format.clean(row.point.label)}"), *cells]
        for row, cells in zip(whole, inner.rows, strict=True)
    ]
    yield Table(
        "The last checkpoint of every finished point; ranges are 95 % intervals.",
        [Column("point", "name"), *inner.columns],
        lines,
    )


def _settings(sweep: Sweep) -> list[str]:
    lines = [
        f"{group}: {_spelled(options)}"
        for group, options in (("launcher", sweep.launcher), ("sampler", sweep.sampler))
    ]
    goals = ", ".join(f"{name}: {way}" for name, way in sweep.objectives.items())
    ranges = [f"{r['head']}: {_range(r)}" for r in sweep.ranges]
    return [format.clean(line) for line in [*lines, *([f"objectives: {goals}"] if goals else []), *ranges]]


def _spelled(options: dict[str, Any]) -> str:
    rest = ", ".join(
        f"{k} {v}" for k, v in options.items() if k not in ("name", "revision") and v is not None
    )
    return f"{options.get('name')} ({rest})" if rest else str(options.get("name"))


def _range(facts: dict[str, Any]) -> str:
    if "values" in facts:
        return ", ".join(facts["values"])
    scale = " on a logarithmic scale" if facts.get("log") else ""
    return f"{facts['low']:g} to {facts['high']:g}{scale}"


def status_lines(sweep: Sweep) -> list[str]:
    """Every point with its state, where it runs or what its error was; then who drives."""
    rows = point_rows(sweep)
    labels = [row.point.label or row.point.run for row in rows]
    width = max(map(len, labels), default=0)
    lines = [format.clean(f"{sweep.folder.name}: {counted(rows)}")]
    for row, label in zip(rows, labels, strict=True):
        state = _state(sweep, row)
        line = f"  {row.name:>4}  {label:{width}}  {row.status:9}  {state}"
        lines.append(format.clean(line.rstrip()))
    driver = sweep.leases.holder(DRIVER)
    if driver is not None:
        return [*lines, f"driven by {driver}"]
    open_points = [row for row in rows if row.status not in ("finished", "pruned")]
    way = f"nobody drives it; go on with: {sweep.command}" if open_points else "complete"
    return [*lines, format.clean(way)]


def _state(sweep: Sweep, row: PointRow) -> str:
    result = row.result
    if row.status == "running" and result is not None:
        return f"since {result.started} on {result.host}"
    if row.status == "failed":
        return f"{_error(row)} Log: {sweep.log(row.point.index)}"
    if row.status == "finished" and result is not None:
        figures = [f"{_label(n, [row])} {figure_text(n, v)}" for n, v in row.values.items()]
        return ", ".join([format.duration(result.seconds), *figures])
    return ""
