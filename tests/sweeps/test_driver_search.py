"""A search by results, from the words to what its sampler is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_processes import statuses

from lcc.cli import main
from lcc.store.sweeps import find_sweep, read_sweep

WORDS = ["-m", "task=generation", "dataset=tiny_text,tiny_en_zh", "sampler.trials=2",
         "sampler.startup=1", "objectives.data.seconds=minimize"]  # fmt: skip


def test_a_search_learns_from_each_point_before_it_asks_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'lcc[optuna]'")
    monkeypatch.chdir(tmp_path)
    assert main(["run", *WORDS, "sampler=tpe"]) == 0
    said = capsys.readouterr().err
    events = ("submitted [1/2]", "[1/2] tiny_text: finished", "submitted [2/2]")
    first, ended, second = (said.index(event) for event in events)
    assert first < ended < second
    sweep = read_sweep(find_sweep(None))
    assert statuses(sweep) == ["finished", "finished"]
    assert all(point.values["data.seconds"] >= 0 for point in sweep.points)
    assert not sweep.points[0].memory and sweep.points[1].memory  # random, then by TPE
