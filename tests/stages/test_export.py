"""A recipe's last verb: the model in another format, proved, as a step with a report."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

import lcc
from lcc.cli import main
from lcc.core.errors import GateError
from lcc.export.model_card import Provenance
from lcc.export.parity import Parity

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


def test_a_recipe_exports_and_its_artifact_verifies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lcc.run("+recipe=twice")
    steps = {step["name"]: step for step in run.facts["steps"]}
    assert {step["status"] for step in steps.values()} == {"finished"}
    assert [s["kind"] for s in run.facts["steps"]].count("calibrate") == 1
    export = run.artifacts["export"]
    assert (export.path / "export" / "model.gguf").is_file()
    measures = export.report["measures"]
    assert measures["logit_error"]["value"] < 0.01 and measures["num_prompts"]["value"] == 200
    small = run.artifacts["small"]
    assert json.loads((small.path / "export" / "export.json").read_text())["facts"]["weighed_by_importance"]
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


@pytest.mark.parametrize(
    "word, message",
    [
        ("stages.export.format=gguff", "Did you mean 'gguf'"),
        ("stages.small.format.type=f16", "importance changes nothing in format gguf"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    word: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "+recipe=twice", word]) == 2
    assert message in capsys.readouterr().err


CARD = """# Fine-tune by an adapter, compress, judge, export.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
  - override /method: lora
  - override /plan: w8
threads: 1
stages:
  finetune: {max_steps: 2, batch_tokens: 256}
  compress: {}
  early: {kind: export, format: hf}
  eval: {samples: 2, bootstrap: 100, max_new_tokens: 3}
  export: {format: hf}
"""


def test_the_card_of_a_recipes_export_tells_where_its_model_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "card.yaml").write_text(CARD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = lcc.run("+recipe=card")
    text = (run.artifacts["export"].path / "export" / "README.md").read_text(encoding="utf-8")
    card = huggingface_hub.ModelCard(text)  # as the hub reads it
    told = card.data.to_dict()
    assert told["base_model"] == "tiny_llama" and told["datasets"] == ["tiny_en_zh"]
    assert told["license"] == "other" and told["pipeline_tag"] == "text-generation"
    scores = {(r.metric_type, r.metric_name): r.metric_value for r in card.data.eval_results}
    for name in told["metrics"]:
        before = run.artifacts["eval.base"].report["measures"][name]["value"]
        this = run.artifacts["eval.quantize"].report["measures"][name]["value"]
        assert scores[name, name] == this
        assert scores[name, f"{name} of base, before"] == before
        assert f"| {name} | {before:.4g} | {this:.4g} |" in text
    assert told["metrics"] and told["metrics"][0] in card.content
    assert "1. finetune (adapter merged)\n2. quantize (quantize)\n3. export as hf" in text
    assert "- Data: tiny_en_zh (Apache-2.0)" in text and "- Task: translation" in text
    assert "## Limits" in text
    early = (run.artifacts["early"].path / "export" / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated by the run" in early and 'base_model: "tiny_llama"' in early
    assert "model-index" not in early
    words = ["export", "quantize", "format=hf", "--out", str(tmp_path / "made")]
    assert main(words) == 0
    assert main(["export", "finetune", "format=hf", "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    by_verb = huggingface_hub.ModelCard((tmp_path / "made" / "README.md").read_text())
    assert by_verb.data.to_dict()["model-index"] == told["model-index"]
    other = (tmp_path / "other" / "README.md").read_text()
    assert "| metric | base (before) | finetune (this) |" in other


def test_scores_of_other_models_do_not_stand_in_a_card() -> None:
    origin = Provenance()
    origin.judge({"base": {"chrf": 1.0}, "quantize": {"chrf": 3.0}}, "finetune")
    assert origin.metrics == {}
    origin.judge({"base": {"chrf": 1.0}, "finetune": {"chrf": 2.0}, "last": {}}, "finetune")
    assert list(origin.metrics) == ["base", "finetune"]
