"""Views of the facts: terminal, Markdown, HTML; every one is a function of the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_reports(run_folder: Path) -> list[Path]:
    """Write report.md and report.html into the run's folder, from its JSON; returns their paths."""
    from lcc.core.report import read_run
    from lcc.views import html, markdown
    from lcc.views.story import story

    document = story(read_run(run_folder))
    written = []
    for name, text in (
        ("report.md", markdown.render(document)),
        ("report.html", html.render(document)),
    ):
        path = run_folder / name
        draft = run_folder / f"{name}.new"
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        written.append(path)
    return written


def print_run(run_folder: Path) -> None:
    """The run's table on the terminal."""
    from lcc.views import terminal

    terminal.print_run(run_folder)


def print_comparison(runs: Mapping[str, Path]) -> None:
    """The runs of a sweep as one table, by the words that made each."""
    from lcc.views import terminal

    terminal.print_comparison(runs)


def print_sweep(run_folder: Path) -> None:
    """A sweep's table and chart on the terminal."""
    from lcc.views import terminal

    terminal.print_sweep(run_folder)


def print_sensitivity(rows: Sequence[dict[str, Any]], notes: Sequence[str], folder: Path) -> None:
    """What a sensitivity step found, on the terminal."""
    from lcc.views import terminal

    terminal.print_sensitivity(rows, notes, folder)
