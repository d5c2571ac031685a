"""Reports: terminal, Markdown and HTML views of the facts, functions of the JSON alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcc.reports.document import Document


def write_reports(run_folder: Path) -> list[Path]:
    """Write report.md and report.html into the run's folder, from its JSON; returns their paths."""
    from lcc.reports.run import story
    from lcc.store.runs import read_run

    return _written(run_folder, story(read_run(run_folder)))


def write_sweep(folder: Path) -> list[Path]:
    """Write report.md and report.html of a sweep into its folder; returns their paths."""
    from lcc.reports.sweep import page
    from lcc.store.sweeps import read_sweep

    return _written(folder, page(read_sweep(folder)))


def _written(folder: Path, document: Document) -> list[Path]:
    from lcc.core.disk import write_text
    from lcc.reports import render

    paths = [folder / "report.md", folder / "report.html"]
    for path, text in zip(paths, (render.to_markdown(document), render.to_html(document)), strict=True):
        write_text(path, text)
    return paths


def print_run(run_folder: Path) -> None:
    """The run's table on the terminal."""
    from lcc.reports import terminal

    terminal.print_run(run_folder)


def print_points(folder: Path) -> None:
    """Every point of a sweep as one table, and where its page is."""
    from lcc.reports import terminal

    terminal.print_points(folder)


def print_sweep(run_folder: Path) -> None:
    """A sweep's table and chart on the terminal."""
    from lcc.reports import terminal

    terminal.print_sweep(run_folder)


def print_sensitivity(rows: Sequence[dict[str, Any]], notes: Sequence[str], folder: Path) -> None:
    """What a sensitivity step found, on the terminal."""
    from lcc.reports import terminal

    terminal.print_sensitivity(rows, notes, folder)
