"""A point that trains badly is stopped, stays stopped, and leaves the others alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from sweep_processes import DATA, Held, statuses

from lcc.config.search_space import Search, SearchTrial
from lcc.core.progress import CurveFile, Progress
from lcc.methods.samplers.grid import Grid
from lcc.pipeline.planner import pipeline_of
from lcc.store.store import ROOT
from lcc.store.sweeps import read_sweep
from lcc.sweeps.driver import Driver, watched_curve
from lcc.sweeps.spec import open_sweep, parse_sweep


@dataclass(frozen=True)
class Stern:
    """The grid, and a verdict against the first point as soon as anybody asks."""

    adaptive: ClassVar[bool] = False

    def total(self, search: Search) -> int:
        return Grid().total(search)

    def ask(self, search: Search) -> SearchTrial | None:
        return Grid().ask(search)

    def prunes(self, search: Search, index: int) -> bool:
        assert search.trials[index].state == "running"
        return index == 0


def driver() -> Driver:
    wanted = replace(parse_sweep(DATA), sampler=Stern())
    sweep = open_sweep(wanted, DATA, verb="run", root=ROOT)
    return Driver(wanted, sweep, wanted.launcher.open(sweep.folder, sweep.folder.name))


def test_a_pruned_point_ends_alone_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held = Held(tmp_path, "tiny_text")  # without its verdict the first point would never end
    first = driver()
    first.drive(Progress())
    assert statuses(read_sweep(first.sweep.folder)) == ["pruned", "finished"]
    assert "[1/2] tiny_text: stopped early" in capsys.readouterr().err
    assert not first.failed and [point.index for point in first.finished] == [1]
    held.release()
    again = driver()
    again.drive(Progress())
    said = capsys.readouterr().err
    assert "submitted" not in said and "[2/2] tiny_en_zh: finished before" in said


def test_the_watched_curve_is_read_while_it_is_written_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = pipeline_of(["+recipe=tiny"], "run")
    assert watched_curve(pipeline, "validation_loss") == {}
    step = pipeline.step("finetune")
    for place, losses in (("work", [3.5, None, 2.5]), ("store", [3.5, None, 2.5, 2.0])):
        folder = ROOT / place / step.key
        folder.mkdir(parents=True)
        curve = CurveFile(folder / "curves.jsonl")
        for n, loss in enumerate(losses, 1):
            curve.log(10 * n, {"loss": 4.0, **({} if loss is None else {"validation_loss": loss})})
        found = {str(10 * n): loss for n, loss in enumerate(losses, 1) if loss is not None}
        assert watched_curve(pipeline, "validation_loss") == found
        (folder / "curves.jsonl").rename(folder / "old")
