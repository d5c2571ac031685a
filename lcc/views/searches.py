"""How a search went: objectives against each other, and the best figure so far."""

from __future__ import annotations

from collections.abc import Sequence

from lcc.core.searching import Direction
from lcc.views import results
from lcc.views.document import Figure
from lcc.views.points import PointRow, figure_text, front
from lcc.views.svg import BOTTOM, LEFT, RIGHT, TOP, Drawing, Scale, padded

WIDTH, HEIGHT = 480.0, 320.0
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def front_figure(rows: Sequence[PointRow], better: dict[str, Direction]) -> Figure | None:
    """The first objective over the second, the front joined; None below two points or goals."""
    whole = [row for row in rows if better and better.keys() <= row.values.keys()]
    if len(whole) < 2 or len(better) < 2:
        return None
    up, across = list(better)[:2]
    best = front(whole, better)
    told = "; ".join(_hint(row, better) for row in whole)
    drawing = Drawing(WIDTH, HEIGHT, f"{results.label(up)} against {results.label(across)}", told)
    one, unit = _unit(across, [row.values[across] for row in whole])
    xs = [row.values[across] / one for row in whole]
    ys = [row.values[up] for row in whole]
    x = Scale(*padded(xs, floor=0.0 if min(xs) >= 0 else None), LEFT, WIDTH - RIGHT)
    y = Scale(*padded(ys, floor=0.0 if min(ys) >= 0 else None), HEIGHT - BOTTOM, TOP)
    drawing.upward(y, results.label(up))
    drawing.across(x, f"{results.label(across)}{unit}")
    at = {row.point.index: (x(row.values[across] / one), y(row.values[up])) for row in whole}
    drawing.line(sorted(at[row.point.index] for row in best), "path")
    for row in whole:
        px, py = at[row.point.index]
        style = "dot" if row in best else "hollow"
        drawing.dot(px, py, radius=5, style=style, title=_hint(row, better))
        is_right = px > WIDTH - 60
        drawing.label(px + (-8 if is_right else 8), py - 6, row.name, style="mark",
                      anchor="end" if is_right else "start")  # fmt: skip
    ways = ", ".join(f"{results.label(n)} {'higher' if w == 'maximize' else 'lower'} is better"
                     for n, w in list(better.items())[:2])  # fmt: skip
    return Figure(drawing.render(), f"{ways}. The dashed line joins the points that no other beats "
                                    "(the Pareto front); hollow ones are beaten.")  # fmt: skip


def history_figure(rows: Sequence[PointRow], better: dict[str, Direction]) -> Figure | None:
    """The first objective of every point in the order of asking, and the best one so far."""
    name = next(iter(better), None)
    whole = [row for row in rows if name is not None and name in row.values]
    if name is None or len(whole) < 3:
        return None
    values = [row.values[name] for row in whole]
    pick = max if better[name] == "maximize" else min
    so_far = [pick(values[: n + 1]) for n in range(len(values))]
    label = results.label(name)
    drawing = Drawing(WIDTH, HEIGHT - 60, f"{label} of point after point",
                      f"the best of {len(values)} so far")  # fmt: skip
    one, unit = _unit(name, values)
    x = Scale(1, max(whole[-1].point.index + 1, 2), LEFT, WIDTH - RIGHT)
    scaled = [value / one for value in values]
    y = Scale(*padded(scaled), drawing.height - BOTTOM, TOP)
    drawing.upward(y, f"{label}{unit}", num=4)
    drawing.across(x, "point", whole=True)
    drawing.line(_stairs([(x(row.point.index + 1), y(value / one))
                          for row, value in zip(whole, so_far, strict=True)]), "curve")  # fmt: skip
    for row, value in zip(whole, scaled, strict=True):
        drawing.dot(x(row.point.index + 1), y(value), radius=3.5, style="dot",
                    title=_hint(row, {name: better[name]}))  # fmt: skip
    best = figure_text(name, so_far[-1])
    return Figure(drawing.render(), f"{label} of every finished point in the order of asking; the "
                                    f"line is the best so far, {best}.")  # fmt: skip


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
    found = next(((size, unit) for size, unit in UNITS if max(values) > 2 * size), (1.0, "B"))
    return found[0], f", {found[1]}"


def _hint(row: PointRow, better: dict[str, Direction]) -> str:
    reached = ", ".join(f"{results.label(n)} {figure_text(n, row.values[n])}" for n in better)
    return f"{row.name} {row.point.label}: {reached}"
