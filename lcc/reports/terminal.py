"""Terminal tables of a run and a sweep, readable at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from lcc.core import format
from lcc.reports import charts, results
from lcc.reports.document import Cell, Column, Table
from lcc.reports.results import results_table
from lcc.reports.run import baseline_table, headline, sensitivity_table
from lcc.reports.sweep import directions, point_rows, points_table
from lcc.reports.sweep import headline as headline_of
from lcc.store.runs import RunFacts, read_run
from lcc.store.sweeps import read_sweep

MAX_METRICS = 4  # the report files show all
COLUMNS = 100  # where nobody's terminal says how wide it is
EXPENDABLE = ("METEOR", "macro-F1", "perplexity", "peak memory", "latency p50, p99", "bits/byte",
              "chrF", "parameters", "decode tokens/s")  # fmt: skip
STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "": ""}


def print_run(folder: Path, console: Console | None = None) -> None:
    """The run in `folder`: its headline, its table, its warnings, and where the report lies."""
    run = read_run(folder)
    console = console or _console()
    console.print(Text(headline(run), style="bold"))
    console.print()
    console.print(table(run, width=console.width))
    beside = baseline_table(run)
    if beside is not None:
        console.print(Text(format.clean(beside.caption), style="dim"))
        console.print(_grid(beside))
    for step in run.steps:
        for warning in step.report.warnings if step.report else []:
            console.print(Text(format.clean(f"warning: {step.name}: {warning}"), style="yellow"))
    for file in ("report.html", "report.md"):
        if (folder / file).is_file():
            console.print(Text(str(folder / file)), soft_wrap=True)


def print_sweep(folder: Path, console: Console | None = None) -> None:
    """All points of a sweep: one table, the chart of quality over bytes, and where the page is."""
    run = read_run(folder)
    console = console or _console()
    checkpoints = results.rows(run)
    metric = results.primary(checkpoints)
    shown = results_table(checkpoints, max_metrics=MAX_METRICS)
    if metric is not None:
        shown = charts.sweep_table(checkpoints, metric)
    console.print(_grid(_narrowed(shown, console.width)))
    for line in charts.chart(checkpoints, metric) if metric is not None else []:
        console.print(Text(line), soft_wrap=True)
    if metric is None:
        console.print(Text("No quality was measured; add task=NAME dataset=NAME.", style="yellow"))
    console.print(Text(str(folder / "report.html")), soft_wrap=True)


def print_sensitivity(
    rows: Sequence[dict[str, Any]], notes: Sequence[str], folder: Path, console: Console | None = None
) -> None:
    """Parts down, actions across; then what hurts most, and where the report lies."""
    console = console or _console()
    shown = sensitivity_table(rows)
    console.print(Text(shown.caption, style="dim"))
    console.print(_grid(shown))
    for note in notes:
        console.print(Text(format.clean(note)))
    console.print(Text(str(folder / "report.html")), soft_wrap=True)


def print_points(folder: Path, console: Console | None = None) -> None:
    """Every point of a sweep, the best one in a sentence, and where the page is."""
    sweep = read_sweep(folder)
    rows = point_rows(sweep)
    console = console or _console()
    console.print(_grid(_narrowed(points_table(sweep, rows), console.width)))
    console.print(Text(headline_of(rows, directions(sweep, rows)), style="bold"))
    for row in rows:
        if row.status in ("failed", "preempted"):
            error = row.result.error if row.result else ""
            console.print(Text(format.clean(f"{row.name} {row.status}: {error}"), style="red"))
            console.print(Text(f"   log: {sweep.log(row.point.index)}"), soft_wrap=True)
    console.print(Text(str(folder / "report.html")), soft_wrap=True)


def table(run: RunFacts, *, width: int = COLUMNS) -> Grid:
    """One row per checkpoint; columns that no row fills are left out."""
    return _grid(_narrowed(results_table(results.rows(run), max_metrics=MAX_METRICS), width))


def _narrowed(shown: Table, width: int) -> Table:
    """Leave out what matters least until the rest fits: half a figure is worse than none."""
    for title in EXPENDABLE:
        if _width(shown) <= width:
            break
        kept = [i for i, column in enumerate(shown.columns) if column.title != title]
        rows = [[row[i] for i in kept] for row in shown.rows]
        shown = Table(shown.caption, [shown.columns[i] for i in kept], rows)
    return shown


def _width(shown: Table) -> int:
    texts = [[_broken(c), *(_text(row[i]).plain for row in shown.rows)] for i, c in enumerate(shown.columns)]
    widest = [max(cell_len(line) for text in column for line in text.splitlines()) for column in texts]
    return sum(widest) + 2 * len(widest)  # two spaces between columns


def _grid(shown: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for column in shown.columns:
        is_figures = column.holds == "figures"
        grid.add_column(
            _broken(column), justify="right" if is_figures else "left", no_wrap=is_figures, overflow="fold"
        )
    for row in shown.rows:
        grid.add_row(*map(_text, row))
    return grid


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style=STYLES[cell.tone])
    for line in cell.small.replace(" vs ", "\nvs ").splitlines():
        text.append(f"\n{line}", style="dim")
    return text


def _broken(column: Column) -> str:
    """A long title over two lines, so that figures decide how wide a column is."""
    title = column.title.replace("parameters", "params").replace("/byte", "/ byte")
    if column.holds != "figures":
        return title
    first, space, rest = title.rpartition(" ") if " of " in title else title.partition(" ")
    return f"{first}\n{rest}" if space else title


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, COLUMNS))
