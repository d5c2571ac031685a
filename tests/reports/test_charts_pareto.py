"""A sweep's points: who dominates whom, and what the charts show of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from lcc import reports
from lcc.reports import charts, results, terminal
from lcc.reports.results import CheckpointRow, Score, Speed
from lcc.store.runs import read_run


def point(name: str, quality: float, size: float, rate: float | None = None) -> CheckpointRow:
    speeds = [Speed(batch_size=1, decode=rate)] if rate else []
    return CheckpointRow(
        checkpoint=name,
        step=name,
        kind="quantize",
        key=name,
        bytes=size,
        speeds=speeds,
        scores={"perplexity": Score(quality)},
    )


def standing(*found: CheckpointRow) -> dict[str, str]:
    return {s.row.checkpoint: s.word for s in charts.standings(found, "perplexity")}


def test_a_point_that_is_worse_and_no_smaller_is_dominated() -> None:
    told = standing(point("dense", 20, 500), point("w8", 20.1, 260), point("bad", 30, 300))
    assert told == {"dense": "on the front", "w8": "on the front", "bad": "dominated by w8"}


def test_a_higher_figure_is_better_where_the_metric_says_so() -> None:
    given = (("dense", 0.9, 500.0), ("w4", 0.8, 100.0), ("none", 0.7, 500.0))
    rows = [
        CheckpointRow(checkpoint=n, step=n, kind="eval", key=n, bytes=b, scores={"accuracy": Score(v)})
        for n, v, b in given
    ]
    told = {s.row.checkpoint: s.beaten_by for s in charts.standings(rows, "accuracy")}
    assert told == {"dense": (), "w4": (), "none": ("dense", "w4")}


def test_a_slower_point_needs_another_virtue() -> None:
    told = standing(point("fast", 20, 100, 50), point("slow", 20, 100, 30))
    assert told == {"fast": "on the front", "slow": "dominated by fast"}


def test_speeds_within_the_noise_decide_nothing() -> None:
    told = standing(point("one", 20, 100, 50), point("two", 20, 100, 51))
    assert set(told.values()) == {"on the front"}


def test_the_chart_puts_better_figures_higher_and_marks_the_front_with_capitals() -> None:
    lines = charts.chart([point("dense", 20, 500), point("w8", 21, 260), point("bad", 30, 300)], "perplexity")
    rows = {mark: next(i for i, line in enumerate(lines) if mark in line and "│" in line) for mark in "ABc"}
    assert rows["A"] < rows["B"] < rows["c"]
    assert "  c bad: 30.0, 300 B; dominated by w8" in lines


def test_a_ruined_point_is_drawn_at_the_edge() -> None:
    figure = charts.figure([point("dense", 20, 500), point("dead", 9e5, 100)], "perplexity")
    assert figure is not None and "stand at the edge" in figure.caption


def test_one_point_alone_has_no_chart() -> None:
    assert charts.chart([point("dense", 20, 500)], "perplexity") == []
    assert charts.figure([point("dense", 20, 500)], "perplexity") is None


def test_a_sweeps_page_and_table_say_who_stands_where(run_folder: Path) -> None:
    path = run_folder / "run.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, "verb": "sweep"}), encoding="utf-8")
    html, _ = (p.read_text(encoding="utf-8") for p in reversed(reports.write_reports(run_folder)))
    assert "dominated by" in html and 'class="hollow"' in html
    stream = io.StringIO()
    terminal.print_sweep(run_folder, Console(file=stream, width=100))
    text = stream.getvalue()
    assert "standing" in text and "on the front" in text
    metric = results.primary(results.rows(read_run(run_folder)))
    assert f"{results.label(str(metric))} (better is up; higher is better)" in text
