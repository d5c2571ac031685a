"""The table fits a terminal of 100 columns and holds no markup of anybody's."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from sample_run import change_report

from lcc import reports
from lcc.reports import terminal


def printed(folder: Path, width: int = 100) -> str:
    stream = io.StringIO()
    terminal.print_run(folder, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_is_readable_at_100_columns(run_folder: Path) -> None:
    text = printed(run_folder)
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("quantize  "))
    assert row.split() == [
        "quantize",
        "97.1",
        "M",
        "121",
        "MB",
        "35.1",
        "34.5",
        "0.903",
        "−2.3",
        "unclear",
        "12.1",
        "82.6",
        "ms",
        "688",
        "MB",
    ]
    for figure in ("21.2 %", "32.0–38.5", "−3.9…−0.5", "vs finetune", "116 ms"):
        assert figure in text


def test_warnings_and_the_report_files_follow_the_table(run_folder: Path) -> None:
    change_report(run_folder, "width", warnings=["[red]heads[/red] are not pruned\x1b[2J"])
    reports.write_reports(run_folder)
    text = printed(run_folder)
    assert "warning: width: [red]heads[/red] are not pruned�[2J" in text
    assert "report.html" in text and "report.md" in text


def test_columns_that_no_row_fills_are_left_out(run_folder: Path) -> None:
    change_report(run_folder, "bench", tables={})
    text = printed(run_folder)
    assert "latency" not in text and "memory" not in text
    assert "BLEU" in text


def test_a_narrow_terminal_loses_columns_and_never_half_a_figure(run_folder: Path) -> None:
    text = printed(run_folder, width=70)
    assert max(map(len, text.splitlines())) <= 70
    assert "−3.9…−0.5" in text and "35.1" in text and "121 MB" in text
    assert "memory" not in text
