"""Charts show what was measured, keep their words apart, and stay small."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lcc.reports import charts, results
from lcc.reports.svg import AxisScale, ticks
from lcc.store.runs import read_run


def curve(num_steps: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"step": s, "loss": 2.0 + 1.0 / s, "grad_norm": 1.0, "clipped_share": float(s % 4 == 0), **fields}
        for s in range(1, num_steps + 1)
    ]


def test_the_clipped_share_is_told_in_words() -> None:
    figure = charts.norm_curve(curve(400), "finetune")
    assert figure is not None
    assert "clipped in 25 % of 400 steps" in figure.caption


def test_a_moving_threshold_is_drawn_with_the_norm() -> None:
    rows = [row | {"clip_threshold": 0.5 + row["step"] / 100} for row in curve(50)]
    figure = charts.norm_curve(rows, "finetune")
    assert figure is not None
    (threshold,) = re.findall(r'class="threshold" points="([^"]*)"', figure.svg)
    heights = [float(point.split(",")[1]) for point in threshold.split()]
    assert len(heights) == 50 and heights == sorted(heights, reverse=True)
    assert "threshold (dashed) 0.51 → 1" in figure.caption


def test_a_share_of_elements_is_told_with_the_steps_it_touched() -> None:
    rows = [row | {"clipped_share": 0.002 * (row["step"] % 2), "clip_threshold": 0.5} for row in curve(50)]
    figure = charts.norm_curve(rows, "finetune", counts="elements")
    assert figure is not None
    assert "0.1 % of elements clipped, some in 50 % of 50 steps; threshold 0.5" in figure.caption
    assert 'class="threshold"' not in figure.svg and "share of elements clipped" in figure.svg


def test_the_curve_of_an_earlier_version_still_says_what_was_clipped() -> None:
    rows = [{"step": s, "loss": 1.0, "grad_norm": 1.0, "clipped": s > 5} for s in range(1, 11)]
    figure = charts.norm_curve(rows, "finetune")
    assert figure is not None and "clipped in 50 % of 10 steps" in figure.caption


def test_a_long_curve_is_thinned_and_a_short_one_is_left_alone() -> None:
    for num_steps, most in ((100_000, charts.MAX_POINTS), (20, 20)):
        figure = charts.loss_curve(curve(num_steps), "finetune")
        assert figure is not None
        points = re.findall(r'class="curve" points="([^"]*)"', figure.svg)[0].split()
        assert len(points) <= most
        assert len(figure.svg) < 20_000


def test_steps_without_a_finite_loss_are_left_out_of_the_line() -> None:
    rows = [*curve(5), {"step": 6, "loss": None, "grad_norm": None, "clipped_share": 0.0}, *curve(0)]
    figure = charts.loss_curve(rows, "finetune")
    assert figure is not None
    assert len(re.findall(r'class="curve" points="([^"]*)"', figure.svg)[0].split()) == 5


def test_too_little_to_draw_is_not_drawn() -> None:
    assert charts.loss_curve([], "finetune") is None
    assert charts.norm_curve(curve(1), "finetune") is None
    assert charts.tradeoff([], "bleu") is None


def test_names_in_the_tradeoff_do_not_cover_one_another(run_folder: Path) -> None:
    figure = charts.tradeoff(results.rows(read_run(run_folder)), "bleu")
    assert figure is not None
    marks = re.findall(r'class="mark" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', figure.svg)
    assert len(marks) == 6
    for (x1, y1, words1), (x2, y2, words2) in combinations(marks, 2):
        apart = abs(float(y1) - float(y2)) >= 12
        left, right = sorted([(float(x1), words1), (float(x2), words2)])
        assert apart or left[0] + 6 * len(left[1]) <= right[0]


@pytest.mark.parametrize("low, high", [(0, 1), (0.0031, 0.0042), (-5, 5), (0, 268e6), (3, 3)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= max(high, low) + 1e-9 for tick in found)


def test_a_scale_of_one_value_does_not_divide_by_zero() -> None:
    assert AxisScale(3, 3, 0, 100)(3) == 0
