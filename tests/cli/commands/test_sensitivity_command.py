"""`lcc sensitivity`: a keyed step of its own, a table, JSON, and the plan's input of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcc.cli import main
from lcc.cli.commands.sensitivity import with_texts
from lcc.pipeline.planner import pipeline_of

WORDS = ["model=tiny_llama", "task=generation", "threads=1"]


def test_it_prints_a_table_and_stores_it_under_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sensitivity", *WORDS]) == 0
    printed = capsys.readouterr().out
    assert "model.layers.1" in printed and "sparse50" in printed and "What hurts most" in printed
    assert main(["sensitivity", *WORDS, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["action"] for row in facts["sensitivity"]} == {"w8", "w4", "sparse50", "width25"}
    report = json.loads((Path("runs/store") / facts["key"] / "report.json").read_text())
    assert report["tables"]["sensitivity"] == facts["sensitivity"]
    page = (Path("runs") / facts["run"] / "report.html").read_text(encoding="utf-8")
    assert "when one part alone is changed" in page


def test_a_recipe_is_probed_where_its_plan_would_start() -> None:
    pipeline = pipeline_of(["+recipe=tiny"], "sensitivity")
    *_, last = pipeline.steps
    assert last.kind == "sensitivity"
    whole = pipeline_of(["+recipe=tiny"], "run")
    first = next(s for s in whole.steps if s.name in whole.recipe.plan)
    assert last.inputs["model"].key == first.inputs["model"].key


def test_packaged_sentences_stand_in_where_no_dataset_is_chosen() -> None:
    assert with_texts(WORDS).words == [*WORDS, "dataset=tiny_text"]
    assert with_texts([*WORDS, "dataset=nyt_text"]).words == [*WORDS, "dataset=nyt_text"]


def test_without_a_model_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity"]) == 2
    assert "lcc sensitivity model=NAME task=NAME" in capsys.readouterr().err
