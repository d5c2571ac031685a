"""Charts of a report: quality against size and speed, and how training went."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lcc.core import format
from lcc.reports import results
from lcc.reports.document import Cell, Column, Figure, Table
from lcc.reports.results import CheckpointRow, results_table
from lcc.reports.svg import BOTTOM, LEFT, LETTER, RIGHT, TOP, AxisScale, Box, Drawing, padded

WIDTH, HEIGHT = 480.0, 320.0
MAX_POINTS = 240  # a curve is drawn with at most so many points, each the mean of its bucket
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
STRIP = 46.0  # height of the clipped share below the gradient norm


def tradeoff(rows: Sequence[CheckpointRow], metric: str) -> Figure | None:
    """Quality over bytes on disk, one dot per checkpoint, larger dots decode faster."""
    shown = [row for row in rows if metric in row.scores and row.bytes]
    if len(shown) < 2:
        return None
    name = results.label(metric, rows)
    names = ", ".join(
        f"{r.checkpoint} {format.score(r.scores[metric].value)} at {format.size(r.bytes)}" for r in shown
    )
    drawing = Drawing(WIDTH, HEIGHT, f"{name} against size on disk", names)
    bounds = [
        b
        for r in shown
        for b in (r.scores[metric].low, r.scores[metric].value, r.scores[metric].high)
        if b is not None
    ]
    low, high = padded(bounds, floor=0.0 if min(bounds) >= 0 else None)
    largest = max(r.bytes or 0 for r in shown)
    one, unit = next(((size, u) for size, u in UNITS if largest > 2 * size), (1.0, "B"))
    x = AxisScale(0, 1.1 * largest / one, LEFT, WIDTH - RIGHT)
    y = AxisScale(low, high, HEIGHT - BOTTOM, TOP)
    drawing.upward(y, name)
    drawing.across(x, f"{unit} on disk")
    at = [(x((r.bytes or 0) / one), y(r.scores[metric].value)) for r in shown]
    drawing.line(at, "path")
    dots(drawing, shown, at, metric, bars=y)
    sizes = (
        f" A larger dot is faster; its number is {shown[0].speed.unit}."
        if any(r.speed.rate for r in shown)
        else ""
    )
    better = "lower is better" if results.lower_is_better(metric, rows) else "higher is better"
    return Figure(
        drawing.render(),
        f"{name} ({better}) and bytes on disk, joined in the order of "
        f"the steps; bars are 95 % intervals.{sizes}",
    )


def dots(
    drawing: Drawing,
    shown: Sequence[CheckpointRow],
    at: Sequence[tuple[float, float]],
    metric: str,
    *,
    bars: AxisScale | None = None,
    hollow: Collection[str] = (),
) -> None:
    """A dot with its name for every row, as large as it is fast; `bars` places its interval."""
    fastest = max((r.speed.rate or 0 for r in shown), default=0)
    radii = [3.5 + 5.5 * (r.speed.rate or 0) / fastest if fastest else 5.0 for r in shown]
    taken = [Box(px - r, py - r, 2 * r, 2 * r) for (px, py), r in zip(at, radii, strict=True)]
    for own, (row, radius) in enumerate(zip(shown, radii, strict=True)):
        px, py = at[own]
        score = row.scores[metric]
        if bars is not None and score.low is not None and score.high is not None:
            drawing.line([(px, bars(score.low)), (px, bars(score.high))], "error")
        speed = f", {format.rate(row.speed.rate)} {row.speed.unit}" if row.speed.rate else ""
        hint = f"{row.checkpoint}: {format.score(score.value, score.unit)}, {format.size(row.bytes)}"
        style = "hollow" if row.checkpoint in hollow else "dot"
        drawing.dot(px, py, radius=radius, style=style, title=hint + speed)
        soft = f"{format.rate(row.speed.rate)}/s" if row.speed.rate else ""
        box = _free_place(f"{row.checkpoint} {soft}", own, radius, at, taken)
        taken.append(box)
        is_left = box.left + box.width / 2 < px
        edge, anchor = (box.left + box.width, "end") if is_left else (box.left, "start")
        if not box.top <= py <= box.top + box.height:  # not beside its dot
            drawing.line([(px, py), box.nearest(px, py)], "leader")
        drawing.label(edge, box.top + 12, row.checkpoint, soft=soft, anchor=anchor, style="mark")


def _free_place(
    words: str, own: int, radius: float, dots: Sequence[tuple[float, float]], taken: Sequence[Box]
) -> Box:
    """The first place around a dot where its name covers nothing, nearer to it than to others."""
    (x, y), width, height, gap = dots[own], LETTER * len(words), 15.0, radius + 4
    sides = [x + gap, x - gap - width, x - width / 2]
    places = [
        Box(left, y - 8 + shift, width, height)
        for shift in (0, -14, 14, -28, 28, -42, 42, -56, 56)
        for left in sides
    ]
    inside = [
        b
        for b in places
        if b.left >= LEFT and b.left + b.width <= WIDTH and b.top >= 0 and b.top + b.height <= HEIGHT - BOTTOM
    ]
    free = [box for box in inside if not any(box.meets(other) for other in taken)]
    others = [dot for dot in dots if math.dist(dot, (x, y)) > 2 * radius]
    plain = [b for b in free if all(b.distance(x, y) + 8 < b.distance(*dot) for dot in others)]
    return (plain or free or inside or places)[0]


def loss_curve(curve: Sequence[dict[str, Any]], step: str) -> Figure | None:
    """Training loss, and validation loss where it was measured."""
    losses = _points(curve, "loss")
    if len(losses) < 2:
        return None
    held_out = _points(curve, "validation_loss")
    drawing = Drawing(WIDTH, HEIGHT - 60, f"Loss of {step}", _ends("loss", losses))
    low, high = padded([v for _, v in [*losses, *held_out]])
    x = AxisScale(losses[0][0], losses[-1][0], LEFT, WIDTH - RIGHT)
    y = AxisScale(low, high, drawing.height - BOTTOM, TOP)
    drawing.upward(y, "loss")
    drawing.across(x, "optimizer step", whole=True)
    drawing.line([(x(s), y(v)) for s, v in _bucketed(losses)], "curve")
    if held_out:
        drawing.line([(x(s), y(v)) for s, v in held_out], "second")
    for s, v in held_out:
        drawing.dot(x(s), y(v), radius=3, style="second", title=f"validation loss {v:.3f}")
    extra = f" Dots: validation, best {min(v for _, v in held_out):.3f}." if held_out else ""
    return Figure(drawing.render(), f"{step}: {_ends('training loss', losses)}.{extra}")


def norm_curve(curve: Sequence[dict[str, Any]], step: str, *, counts: str = "steps") -> Figure | None:
    """The gradient norm before clipping with its threshold; below, the share that was clipped.

    A share of anything but steps (layers, units, elements) has a threshold of its own scale, which
    is told and not drawn.
    """
    norms = _points(curve, "grad_norm")
    if len(norms) < 2:
        return None
    # Curves of earlier versions say only whether a step was clipped.
    clipped = [(row["step"], float(row.get("clipped_share", row.get("clipped")) or 0)) for row in curve]
    bounds = _points(curve, "clip_threshold")
    description = f"{_clipping(clipped, counts)}{_threshold(bounds, counts)}"
    drawing = Drawing(WIDTH, HEIGHT - 60, f"Gradient norm of {step}", description)
    x = AxisScale(norms[0][0], norms[-1][0], LEFT, WIDTH - RIGHT)
    bottom = drawing.height - BOTTOM
    lines = {"curve": _bucketed(norms)}
    if bounds and counts == "steps":
        lines["threshold"] = _bucketed(bounds)
    values = [v for line in lines.values() for _, v in line]
    y = AxisScale(*padded(values, floor=0.0), bottom - STRIP - 18, TOP)
    drawing.upward(y, "gradient norm", num=4)
    for style, line in lines.items():
        drawing.line([(x(s), y(v)) for s, v in line], style)
    _strip(drawing, clipped, x, bottom, counts=counts)
    drawing.across(x, "optimizer step", whole=True)
    return Figure(drawing.render(), f"{step}: gradient norm before clipping, {description}.")


def _clipping(clipped: Sequence[tuple[float, float]], counts: str) -> str:
    mean = sum(v for _, v in clipped) / len(clipped)
    if counts == "steps":
        return f"clipped in {format.share(mean)} of {len(clipped):,} steps"
    touched = sum(v > 0 for _, v in clipped) / len(clipped)
    return (
        f"{format.share(mean)} of {format.clean(counts)} clipped, some in "
        f"{format.share(touched)} of {len(clipped):,} steps"
    )


def _threshold(bounds: Sequence[tuple[float, float]], counts: str) -> str:
    if not bounds:
        return ""
    ends = dict.fromkeys(format.quantity(value, "") for _, value in (bounds[0], bounds[-1]))
    where = " (dashed)" if counts == "steps" else ""
    return f"; threshold{where} {' → '.join(ends)}"


def _strip(
    drawing: Drawing, clipped: Sequence[tuple[float, float]], x: AxisScale, bottom: float, *, counts: str
) -> None:
    """Bars of the clipped share; the full height is all of a bucket, or the largest small share."""
    top = bottom - STRIP
    drawing.bar(Box(x.start, top, x.end - x.start, STRIP), "ground")
    buckets = _bucketed(clipped, 60)
    largest = max(value for _, value in buckets)
    full = largest if counts != "steps" and largest else 1.0
    edges = [x(s) for s, _ in buckets]
    width = max(min((b - a for a, b in pairwise(edges)), default=8.0) * 0.9, 0.8)
    for (_, value), left in zip(buckets, edges, strict=True):
        height = value / full * STRIP
        drawing.bar(Box(min(left, x.end - width), bottom - height, width, height), "clipped")
    drawing.label(x.start + 4, top - 4, f"share of {counts} clipped", style="name")
    drawing.label(LEFT - 6, top + 10, "all" if full == 1 else format.share(full), anchor="end")
    drawing.label(LEFT - 6, bottom, "none", anchor="end")


def _points(curve: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in curve if isinstance(row.get(name), int | float)]


def _bucketed(points: Sequence[tuple[float, float]], num: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `num` points: the mean of each bucket, at its middle."""
    size = -(-len(points) // num)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(chunk[len(chunk) // 2][0], sum(v for _, v in chunk) / len(chunk)) for chunk in chunks]


def _ends(name: str, points: Sequence[tuple[float, float]]) -> str:
    """From the mean of the first tenth to the mean of the last: single steps are noise."""
    few = max(len(points) // 10, 1)
    first, last = ([v for _, v in part] for part in (points[:few], points[-few:]))
    return f"{name} {sum(first) / few:.3f} → {sum(last) / few:.3f}"


# A sweep's points by quality, bytes and speed: who is beaten by whom, as words and as charts.

NOISE = 0.05  # speeds that differ by less count as equal
STEEP = 20.0  # a ratio of best to worst figure from which the axis is logarithmic
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLUMNS, LINES = 64, 14  # of the chart on a terminal


@dataclass(frozen=True)
class Standing:
    """One point and the points that are at least as good in everything, and better in something."""

    row: CheckpointRow
    beaten_by: tuple[str, ...]

    @property
    def word(self) -> str:
        return f"dominated by {self.beaten_by[0]}" if self.beaten_by else "on the front"


def standings(rows: Sequence[CheckpointRow], metric: str) -> list[Standing]:
    """Every point that was judged and weighed, with what dominates it."""
    shown = [row for row in rows if metric in row.scores and row.bytes]
    return [
        Standing(
            row, tuple(other.checkpoint for other in shown if other is not row and _beats(other, row, metric))
        )
        for row in shown
    ]


def _beats(one: CheckpointRow, other: CheckpointRow, metric: str) -> bool:
    sign = -1 if results.lower_is_better(metric, [one]) else 1
    quality = sign * (one.scores[metric].value - other.scores[metric].value)
    fewer = (other.bytes or 0) - (one.bytes or 0)
    speed = _speed_gain(one, other)
    return quality >= 0 and fewer >= 0 and speed >= 0 and (quality > 0 or fewer > 0 or speed > 0)


def _speed_gain(one: CheckpointRow, other: CheckpointRow) -> float:
    """How much faster, as a ratio less one; zero within the noise or where nobody measured."""
    ours, theirs = one.speed.rate, other.speed.rate
    if not ours or not theirs:
        return 0.0
    gain = ours / theirs - 1
    return 0.0 if abs(gain) < NOISE else gain


def sweep_table(rows: Sequence[CheckpointRow], metric: str) -> Table:
    """The results of all points, each with its standing."""
    inner = results_table(rows, max_metrics=4)
    by_checkpoint = {s.row.checkpoint: s for s in standings(rows, metric)}
    lines = [
        [*cells[:1], _standing(by_checkpoint.get(row.checkpoint)), *cells[1:]]
        for row, cells in zip(rows, inner.rows, strict=True)
    ]
    columns = [Column("point", "name"), Column("standing", "prose"), *inner.columns[1:]]
    return Table("Every point on the same samples; ranges are 95 % intervals.", columns, lines)


def _standing(standing: Standing | None) -> Cell:
    if standing is None:
        return Cell(format.MISSING)
    return Cell(format.clean(standing.word), tone="" if standing.beaten_by else "good")


def chart(rows: Sequence[CheckpointRow], metric: str) -> list[str]:
    """Quality over bytes in letters, capital ones on the front; then who is who."""
    shown = standings(rows, metric)
    if len(shown) < 2:
        return []
    marks = {s.row.checkpoint: _mark(i, s) for i, s in enumerate(shown)}
    ys = _heights(
        [s.row.scores[metric].value for s in shown], lower_is_better=results.lower_is_better(metric, rows)
    )
    largest = max(s.row.bytes or 0 for s in shown)
    grid = [[" "] * COLUMNS for _ in range(LINES)]
    for standing, y in zip(shown, ys, strict=True):
        x = round((standing.row.bytes or 0) / largest * (COLUMNS - 1))
        line = grid[LINES - 1 - round(y * (LINES - 1))]
        while x < COLUMNS - 1 and line[x] != " ":
            x += 1  # a point that stands on another is shown beside it
        line[x] = marks[standing.row.checkpoint]
    name = results.label(metric, rows)
    better = "lower" if results.lower_is_better(metric, rows) else "higher"
    drawn = [f"  {name} (better is up; {better} is better)"]
    drawn += [f"  │{''.join(line).rstrip()}" for line in grid]
    drawn.append("  └" + "─" * COLUMNS)
    drawn.append(f"   0{'bytes on disk'.center(COLUMNS - 12)}{format.size(largest):>10}")
    return drawn + [_legend(s, marks[s.row.checkpoint], metric) for s in shown]


def _mark(index: int, standing: Standing) -> str:
    letter = LETTERS[index % len(LETTERS)]
    return letter if standing.beaten_by else letter.upper()


def _heights(values: Sequence[float], *, lower_is_better: bool) -> list[float]:
    """Each figure's place between the worst (0) and the best (1)."""
    if min(values) > 0 and max(values) / min(values) > STEEP:
        values = [math.log(value) for value in values]
    low, high = min(values), max(values)
    up = [(value - low) / ((high - low) or 1.0) for value in values]
    return [1 - height for height in up] if lower_is_better else up


def _legend(standing: Standing, mark: str, metric: str) -> str:
    row = standing.row
    score = row.scores[metric]
    speed = f", {format.rate(row.speed.rate)} {row.speed.unit}" if row.speed.rate else ""
    return format.clean(
        f"  {mark} {row.checkpoint}: {format.score(score.value, score.unit)}, "
        f"{format.size(row.bytes)}{speed}; {standing.word}"
    )


def figure(checkpoints: Sequence[CheckpointRow], metric: str) -> Figure | None:
    """The same as a drawing; the line joins the front, hollow dots are dominated."""
    shown = standings(checkpoints, metric)
    if len(shown) < 2:
        return None
    name, rows = results.label(metric, checkpoints), [s.row for s in shown]
    values = [row.scores[metric].value for row in rows]
    description = "; ".join(_legend(s, "", metric).strip() for s in shown)
    drawing = Drawing(WIDTH, HEIGHT, f"{name} against size on disk", description)
    largest = max(row.bytes or 0 for row in rows)
    one, unit = next(((size, u) for size, u in UNITS if largest > 2 * size), (1.0, "B"))
    # A ruined point must not press all others into one line: it is drawn at the edge.
    edge = (
        4 * min(values) if results.lower_is_better(metric, checkpoints) and min(values) > 0 else max(values)
    )
    low, high = padded([min(v, edge) for v in values], floor=0.0 if min(values) >= 0 else None)
    x = AxisScale(0, 1.1 * largest / one, LEFT, WIDTH - RIGHT)
    y = AxisScale(low, high, HEIGHT - BOTTOM, TOP)
    drawing.upward(y, name)
    drawing.across(x, f"{unit} on disk")
    at = [(x((r.bytes or 0) / one), y(min(v, edge))) for r, v in zip(rows, values, strict=True)]
    front = sorted(p for p, s in zip(at, shown, strict=True) if not s.beaten_by)
    drawing.line(front, "path")
    dots(drawing, rows, at, metric, hollow={s.row.checkpoint for s in shown if s.beaten_by})
    better = "lower" if results.lower_is_better(metric, checkpoints) else "higher"
    cut = f" Points worse than {format.score(edge)} stand at the edge." if max(values) > edge else ""
    caption = (
        f"{name} ({better} is better) and bytes on disk. The dashed line joins the points that no"
        " other beats in quality, bytes and speed; hollow ones are dominated. A larger dot is"
        f" faster.{cut}"
    )
    return Figure(drawing.render(), caption)
