"""A recipe's last verb: the model in another format, proved, as a step with a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lcc
from lcc.cli import main
from lcc.core.errors import GateError
from lcc.exporting.parity import Parity

RECIPE = """# Export, twice.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
threads: 1
stages:
  export: {format: gguf}
  small:
    kind: export
    format: {name: gguf, type: q4_k_m}
    prompts: task
    importance: true
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("cyllama", reason="llama.cpp is not installed: lcc[llamacpp]")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "twice.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_exports_and_its_artifact_verifies(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lcc.run("+recipe=twice")
    steps = {step["name"]: step for step in run.facts["steps"]}
    assert {step["status"] for step in steps.values()} == {"finished"}
    assert [s["kind"] for s in run.facts["steps"]].count("calibrate") == 1
    export = run.artifacts["export"]
    assert (export.path / "export" / "model.gguf").is_file()
    measures = export.report["measures"]
    assert measures["logit_error"]["value"] < 0.01 and measures["num_prompts"]["value"] == 200
    small = run.artifacts["small"]
    assert json.loads((small.path / "export" / "export.json").read_text())["facts"][
        "weighed_by_importance"
    ]
    assert small.report["measures"]["export_bytes"]["value"] < measures["export_bytes"]["value"]
    assert main(["verify", "export", str(small.path / "export")]) == 0
    assert capsys.readouterr().out.count("as they were written") == 2
    assert {s["status"] for s in lcc.run("+recipe=twice").facts["steps"]} == {"reused"}


def test_a_closed_gate_fails_the_step_and_publishes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parity, "refusals", lambda self: ["its logits are off."])
    with pytest.raises(GateError, match="step 'export' failed: format gguf: the export is not"):
        lcc.run("+recipe=twice", "~stages.small")
    assert list(here.glob("runs/work/*/export/FAILED.json"))
    assert not list(here.glob("runs/store/*/export"))


@pytest.mark.parametrize("word, message", [
    ("stages.export.format=gguff", "Did you mean 'gguf'"),
    ("stages.small.format.type=f16", "importance changes nothing in format gguf"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_runs(
    word: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "+recipe=twice", word]) == 2
    assert message in capsys.readouterr().err
