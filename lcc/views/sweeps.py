"""A sweep told in order: what is best, every point, what failed and where its log lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lcc.core.searching import Direction
from lcc.core.sweeps import DRIVER, Sweep
from lcc.views import results, units
from lcc.views.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Figures,
    Section,
    Table,
    Tone,
)
from lcc.views.parallel import parallel, short
from lcc.views.points import PointRow, directions, figure_text, front, point_rows
from lcc.views.searches import front_figure, history_figure
from lcc.views.tables import results_table

TONES: dict[str, Tone] = {"finished": "good", "failed": "bad", "preempted": "unclear",
                          "pruned": "unclear"}  # fmt: skip


def page(sweep: Sweep) -> Document:
    """The whole report of `sweep`."""
    rows = point_rows(sweep)
    better = directions(sweep, rows)
    parts: list[tuple[str, list[Block]]] = [
        ("Results", [*_figures(rows, better), points_table(sweep, rows)]),
        ("Not finished", list(_unfinished(sweep, rows))),
        ("Last checkpoints", list(_checkpoints(rows))),
        ("Reproduce", [Code(units.clean(sweep.command)), Bullets(_settings(sweep))]),
    ]
    sections = [Section(title, blocks) for title, blocks in parts if blocks]
    started = units.clean(sweep.started).replace("T", " ").removesuffix("Z")
    subtitle = f"{started} UTC · {sweep.folder.name} · {counted(rows)}"
    return Document(f"{units.clean(sweep.name)}: sweep", units.clean(subtitle),
                    headline(rows, better), sections)  # fmt: skip


def counted(rows: Sequence[PointRow]) -> str:
    """`6 points: 4 finished, 1 failed, 1 running`."""
    counts = Counter(row.status for row in rows)
    word = "point" if len(rows) == 1 else "points"
    told = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    return f"{len(rows)} {word}: {told}" if rows else "no point yet"


def headline(rows: Sequence[PointRow], better: dict[str, Direction]) -> str:
    """The best point in one sentence."""
    best = front(rows, better)
    if not best:
        return "No point has finished with a figure to compare yet."
    name, way = next(iter(better.items()))
    pick = max if way == "maximize" else min
    top = pick(best, key=lambda row: row.values[name])
    reached = ", ".join(f"{results.label(n)} {figure_text(n, top.values[n])}" for n in better)
    rest = f" {len(best)} points are beaten by none." if len(best) > 1 else ""
    return units.clean(f"Best {results.label(name)}: {top.name} {top.point.label} "
                       f"({reached}).{rest}")  # fmt: skip


def points_table(sweep: Sweep, rows: Sequence[PointRow]) -> Table:
    """One row a point: its number, what it chose, what became of it and what it reached."""
    better = directions(sweep, rows)
    heads = list(dict.fromkeys(head for row in rows for head in row.point.chosen))
    best = front(rows, better) if len(better) > 1 else []
    columns = [Column("point", "name"), *(Column(short(h, heads), "name") for h in heads),
               Column("status", "name"), *(Column(results.label(n)) for n in better),
               Column("time")]  # fmt: skip
    lines = []
    for row in rows:
        tone = TONES.get(row.status, "")
        status = Cell(row.status, "on the front" if row in best else "", tone)
        seconds = row.result.seconds if row.result and row.result.seconds else None
        chosen = [Cell(units.clean(row.point.chosen.get(head, ""))) for head in heads]
        reached = [Cell(figure_text(name, row.values.get(name))) for name in better]
        lines.append([Cell(row.name), *chosen, status, *reached, Cell(units.duration(seconds))])
    return Table(f"{counted(rows)}. A point's log is points/NNN.log, counted from 000.", columns,
                 lines)  # fmt: skip


def _figures(rows: Sequence[PointRow], better: dict[str, Direction]) -> Iterator[Block]:
    drawn = [parallel(rows, better), front_figure(rows, better), history_figure(rows, better)]
    found = [figure for figure in drawn if figure is not None]
    if found:
        yield Figures(found)


def _unfinished(sweep: Sweep, rows: Sequence[PointRow]) -> Iterator[Block]:
    """What went wrong, where to read more, and how to go on."""
    bad = [row for row in rows if row.status in ("failed", "preempted")]
    if bad:
        yield Bullets([f"{row.name} {units.clean(row.point.label)}: {_error(row)} Log: "
                       f"{sweep.log(row.point.index)}" for row in bad], tone="bad")  # fmt: skip
    if any(row.status not in ("finished", "pruned") for row in rows):
        yield Bullets(["The same command tries again what is not finished, and nothing else."])


def _error(row: PointRow) -> str:
    error = row.result.error if row.result and row.result.error else "ended without a word."
    return units.clean(error if error.endswith((".", "?")) else f"{error}.")


def _checkpoints(rows: Sequence[PointRow]) -> Iterator[Block]:
    """The last model of every finished point with all its figures and intervals."""
    whole = [row for row in rows if row.row is not None]
    if not whole:
        return
    inner = results_table([row.row for row in whole if row.row is not None])
    lines = [[Cell(f"{row.name} {units.clean(row.point.label)}"), *cells]
             for row, cells in zip(whole, inner.rows, strict=True)]  # fmt: skip
    yield Table("The last checkpoint of every finished point; ranges are 95 % intervals.",
                [Column("point", "name"), *inner.columns], lines)  # fmt: skip


def _settings(sweep: Sweep) -> list[str]:
    told = [f"{group}: {_spelled(options)}" for group, options in
            (("launcher", sweep.launcher), ("sampler", sweep.sampler))]  # fmt: skip
    goals = ", ".join(f"{name}: {way}" for name, way in sweep.objectives.items())
    ranges = [f"{r['head']}: {_range(r)}" for r in sweep.ranges]
    return [units.clean(line) for line in
            [*told, *([f"objectives: {goals}"] if goals else []), *ranges]]  # fmt: skip


def _spelled(options: dict[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in options.items() if k not in ("name", "revision")
                     and v is not None)  # fmt: skip
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
    lines = [units.clean(f"{sweep.folder.name}: {counted(rows)}")]
    for row, label in zip(rows, labels, strict=True):
        told = _state(sweep, row)
        line = f"  {row.name:>4}  {label:{width}}  {row.status:9}  {told}"
        lines.append(units.clean(line.rstrip()))
    driver = sweep.leases.holder(DRIVER)
    if driver is not None:
        return [*lines, f"driven by {driver}"]
    open_points = [row for row in rows if row.status not in ("finished", "pruned")]
    way = f"nobody drives it; go on with: {sweep.command}" if open_points else "complete"
    return [*lines, units.clean(way)]


def _state(sweep: Sweep, row: PointRow) -> str:
    result = row.result
    if row.status == "running" and result is not None:
        return f"since {result.started} on {result.host}"
    if row.status == "failed":
        return f"{_error(row)} Log: {sweep.log(row.point.index)}"
    if row.status == "finished" and result is not None:
        figures = [f"{results.label(n)} {figure_text(n, v)}" for n, v in row.values.items()]
        return ", ".join([units.duration(result.seconds), *figures])
    return ""
