"""A run folder is read as it lies; what is no run is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lcc.core.errors import DataError, RecipeError
from lcc.store.runs import find_run, read_run


def make_run(root: Path, name: str, **facts: Any) -> Path:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    blank = {"format": 1, "run": name, "status": "finished", "steps": []}
    (folder / "run.json").write_text(json.dumps({**blank, **facts}))
    return folder


def test_a_step_is_read_by_its_key_where_the_link_is_gone(tmp_path: Path) -> None:
    step = {
        "name": "vocab",
        "kind": "vocab",
        "key": "k1",
        "status": "reused",
        "folder": "01-vocab",
        "checkpoint": "vocab",
    }
    run = make_run(tmp_path, "tiny-1", steps=[step, {"name": "width", "status": "pending"}])
    artifact = tmp_path / "runs" / "store" / "k1"
    artifact.mkdir(parents=True)
    facts = {
        "format": 1,
        "measures": {"parameters": {"value": 12, "unit": "count"}, "verdict": {"value": "kept"}},
    }
    (artifact / "report.json").write_text(json.dumps(facts))
    read = read_run(run)
    assert list(read.checkpoints) == ["vocab"]
    report = read.steps[0].report
    assert report is not None
    assert (report.number("parameters"), report.word("verdict")) == (12, "kept")
    assert (report.number("verdict"), report.word("parameters")) == (None, "")
    assert read.steps[1].report is None


def test_the_newest_run_is_found_without_a_name(tmp_path: Path) -> None:
    make_run(tmp_path, "tiny-1")
    newest = make_run(tmp_path, "tiny-2")
    (tmp_path / "runs" / "last").write_text("tiny-2\n")
    assert find_run(None, tmp_path / "runs") == newest
    assert find_run(str(newest), tmp_path / "runs") == newest


def test_an_unknown_run_names_the_nearest(tmp_path: Path) -> None:
    make_run(tmp_path, "tiny-1a2b")
    with pytest.raises(RecipeError, match=r"no run is named 'tiny-1a2'. Did you mean 'tiny-1a2b'\?"):
        find_run("tiny-1a2", tmp_path / "runs")


def test_an_empty_folder_says_how_to_start(tmp_path: Path) -> None:
    for name in (None, "tiny"):
        with pytest.raises(RecipeError, match="no run in this folder yet; start one with lcc run"):
            find_run(name, tmp_path / "runs")


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run; a run's folder holds a run\.json"):
        read_run(tmp_path)


def test_half_a_file_and_a_newer_format_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "tiny-1", format=2)
    with pytest.raises(DataError, match="written by a newer lcc"):
        read_run(folder)
    (folder / "run.json").write_text('{"format": 1, "ru')
    with pytest.raises(DataError, match=r"run\.json: line 1 is no JSON"):
        read_run(folder)
