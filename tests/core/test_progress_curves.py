"""The curve file survives a kill and resumes without gaps or doubles."""

from __future__ import annotations

import math
from pathlib import Path

from lcc.core.progress import CurveFile, Tracker


def written(path: Path, num_steps: int) -> CurveFile:
    curve = CurveFile(path)
    for step in range(1, num_steps + 1):
        curve.log(step, {"loss": 1.0 / step, "clipped": step == 2, "tokens": 64 * step})
    return curve


def test_lines_come_back_as_they_were_logged(tmp_path: Path) -> None:
    rows = list(written(tmp_path / "curves.jsonl", 2).rows())
    assert rows == [
        {"step": 1, "loss": 1.0, "clipped": False, "tokens": 64},
        {"step": 2, "loss": 0.5, "clipped": True, "tokens": 128},
    ]


def test_a_resumed_run_cuts_the_curve_at_its_step_and_goes_on(tmp_path: Path) -> None:
    curve = written(tmp_path / "curves.jsonl", 5)
    curve.rewind(3)
    curve.log(4, {"loss": 9.0})
    assert [row["step"] for row in curve.rows()] == [1, 2, 3, 4]
    assert list(curve.rows())[-1]["loss"] == 9.0


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    curve = written(tmp_path / "curves.jsonl", 2)
    with curve.path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in curve.rows()] == [1, 2]
    curve.rewind(2)
    curve.log(3, {"loss": 0.1})
    assert [row["step"] for row in curve.rows()] == [1, 2, 3]


def test_numbers_that_are_not_finite_stay_readable_json(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "curves.jsonl")
    curve.log(1, {"loss": math.nan, "grad_norm": math.inf})
    assert list(curve.rows()) == [{"step": 1, "loss": None, "grad_norm": None}]


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "none.jsonl")
    curve.rewind(3)
    assert list(curve.rows()) == []
    assert isinstance(curve, Tracker)
