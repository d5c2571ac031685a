"""A sweep's views: the front by hand, every point in sight, and nothing that runs or loads."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from sample_sweep import GOALS, write_sample_sweep

from lcc import reports
from lcc.reports import terminal
from lcc.reports.sweep import (
    PointRow,
    counted,
    directions,
    figure_text,
    front,
    front_figure,
    headline,
    history_figure,
    parallel,
    point_rows,
    short,
    status_lines,
)
from lcc.store.sweeps import Point, read_sweep


def rows(*figures: tuple[float, float]) -> list[PointRow]:
    return [
        PointRow(Point(n, [], {"lr": str(n)}), "finished", None, None, {"q": q, "b": b})
        for n, (q, b) in enumerate(figures)
    ]


def test_the_front_is_what_no_other_point_beats() -> None:
    found = rows((10, 5), (12, 7), (9, 6), (12, 8), (10, 5))
    best = front(found, {"q": "maximize", "b": "minimize"})
    assert [row.name for row in best] == ["#1", "#2", "#5"]
    assert [row.name for row in front(found, {"q": "minimize"})] == ["#3"]


def test_every_point_stands_on_the_page_and_failures_say_where_their_log_is(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path, GOALS)
    reports.write_sweep(sweep.folder)
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    assert "8 points: 6 finished, 1 failed, 1 waiting" in page
    assert all(f">#{n}<" in page for n in range(1, 9))
    assert "&lt;i&gt;diverged&lt;/i&gt;" in page and "points/006.log" in page
    assert "Best eval.quantize BLEU: #6" in page
    assert page.count("<figure>") == 3
    assert sweep.command.replace("<", "&lt;").split("'")[0].strip() in page


def test_the_page_runs_nothing_loads_nothing_and_escapes_everything(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path, GOALS)
    reports.write_sweep(sweep.folder)
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    assert "<b>w4" not in page and "<i>diverged" not in page and "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page) and "url(" not in page
    assert "default-src 'none'" in page
    markdown = (sweep.folder / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown.replace("```", "").split("## Reproduce")[0]


def test_without_objectives_quality_and_bytes_are_compared(tmp_path: Path) -> None:
    sweep = read_sweep(write_sample_sweep(tmp_path).folder)
    found = point_rows(sweep)
    assert directions(sweep, found) == {"bleu": "maximize", "bytes": "minimize"}
    assert found[0].values["bleu"] == 35.1


def test_every_finished_point_is_one_line_through_all_axes(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path, GOALS)
    figure = parallel(point_rows(sweep), GOALS)
    assert figure is not None
    lines = re.findall(r'<polyline class="thread[^"]*" points="([^"]+)"', figure.svg)
    assert len(lines) == 6 and {len(line.split()) for line in lines} == {4}
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    best_quality = min(height[2] for height in heights)  # up is better
    assert heights[[h[2] for h in heights].index(best_quality)][1] == min(h[1] for h in heights)
    assert 'class="thread best"' in figure.svg


def test_a_constant_word_has_no_axis_and_one_point_no_figure() -> None:
    alone = rows((1, 2))
    assert parallel(alone, {"q": "maximize"}) is None
    assert front_figure(alone, {"q": "maximize", "b": "minimize"}) is None
    assert history_figure(alone, {"q": "maximize"}) is None


def test_words_are_shortened_as_far_as_they_stay_apart() -> None:
    heads = ["stages.finetune.lr", "plan.heal.lr", "plan.quantize.bits", "+seed"]
    assert [short(head, heads) for head in heads] == ["finetune.lr", "heal.lr", "bits", "seed"]


def test_the_best_so_far_never_gets_worse() -> None:
    figure = history_figure(rows((3, 0), (1, 0), (2, 0), (5, 0), (4, 0)), {"q": "maximize"})
    assert figure is not None
    drawn = re.search(r'class="curve" points="([^"]+)"', figure.svg)
    assert drawn is not None
    heights = [float(point.split(",")[1]) for point in drawn[1].split()]
    assert heights == sorted(heights, reverse=True)
    assert "5" in figure.caption


def test_the_terminal_shows_every_point_within_its_width(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path)
    stream = io.StringIO()
    terminal.print_points(sweep.folder, Console(file=stream, width=100))
    text = stream.getvalue()
    assert max(map(len, text.splitlines()[:10])) <= 100
    assert all(f"#{n} " in text for n in range(1, 9)) and text.count("35.1") >= 6
    assert "points/006.log" in text


def test_a_status_says_what_every_point_does_and_how_to_go_on(tmp_path: Path) -> None:
    sweep = write_sample_sweep(tmp_path, GOALS)
    lease = sweep.leases.try_acquire("007")
    assert lease is not None
    lines = status_lines(sweep)
    lease.release()
    assert lines[0] == "sweep-mt-12345678: 8 points: 6 finished, 1 failed, 1 running"
    assert "diverged" in lines[7] and "points/006.log" in lines[7] and " running" in lines[8]
    assert lines[-1] == f"nobody drives it; go on with: {sweep.command}"
    driver = sweep.leases.try_acquire("driver")
    assert driver is not None
    assert status_lines(sweep)[-1] == f"driven by {driver.owner}"
    driver.release()


def test_figures_are_told_in_the_words_of_what_they_measure() -> None:
    told = {
        "quantize.bytes": 143596.0,
        "bits_per_byte": 6.74888,
        "eval.heal.bleu": 35.12,
        "finetune.seconds": 75.0,
        "parameters": 1.9e6,
        "heal.validation_loss": 2.0,
    }
    assert [figure_text(name, value) for name, value in told.items()] == [
        "144 kB",
        "6.749",
        "35.1",
        "1 min 15 s",
        "1.9 M",
        "2.000",
    ]


def test_nothing_finished_is_said_in_a_sentence() -> None:
    assert headline([], {}) == "No point has finished with a figure to compare yet."
    assert counted([]) == "no point yet"
