"""A run from the first word to the report: reuse, repair, sweeps, two processes, going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lcc
from lcc.cli import main
from lcc.pipeline.runner import RunRecord

RECIPE = """# The whole chain, smaller than tiny: what these tests run many times.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
  - override /plan: w8
threads: 1
stages:
  finetune: {max_steps: 2, batch_tokens: 256}
  compress: {}
  eval: {samples: 2, bootstrap: 100, max_new_tokens: 3, checkpoints: [base, quantize]}
  bench: {rounds: 1, new_tokens: 2, prompt_tokens: 4, checkpoints: [quantize]}
"""


def _here(folder: Path) -> Path:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "chain.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe ran once, from Python."""
    folder = _here(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = lcc.run("+recipe=chain", "seed=1")
    assert set(_statuses(run.facts).values()) == {"finished"}
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder that a test may spoil."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


def _statuses(facts: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["status"] for step in facts["steps"]}


def _ran(run: RunRecord) -> list[str]:
    return [name for name, status in _statuses(run.facts).items() if status == "finished"]


def test_a_second_run_reuses_everything(folder: Path) -> None:
    run = lcc.run("+recipe=chain", "seed=1")
    assert set(_statuses(run.facts).values()) == {"reused"}
    assert run.facts["status"] == "finished"
    assert (run.folder / "02-data").resolve() == run.artifacts["data"].path.resolve()


def test_other_bits_run_only_what_follows_from_them(folder: Path) -> None:
    run = lcc.run("+recipe=chain", "seed=1", "plan.quantize.bits=4")
    assert _ran(run) == ["quantize", "eval.quantize", "bench"]


def test_a_damaged_artifact_is_named_set_aside_and_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lcc.run("+recipe=chain", "seed=1").artifacts["finetune.merged"]
    weights = before.path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    capsys.readouterr()
    run = lcc.run("+recipe=chain", "seed=1")
    told = " ".join("".join(capsys.readouterr()).split())
    assert "model/model.safetensors" in told and before.key[:12] in told
    assert _ran(run) == ["finetune.merged"]
    after = run.artifacts["finetune.merged"]
    assert (
        after.manifest["files"]["model/model.safetensors"]
        == (before.manifest["files"]["model/model.safetensors"])
    )
    assert [p for p in (folder / "runs" / "damaged").rglob("model.safetensors")]


def test_a_failed_point_is_told_and_the_next_one_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "-m", "+recipe=chain", "seed=1,2", "stages.finetune.max_steps=2,0"]
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    points = json.loads(captured.out)
    assert [p["status"] for p in points] == ["finished", "failed", "finished", "failed"]
    assert points[1]["point"] == ["seed=1", "stages.finetune.max_steps=0"]
    assert "lcc: seed=2 stages.finetune.max_steps=0: command line" in captured.err
    assert "data" not in [s["name"] for s in points[2]["steps"] if s["status"] == "finished"]


def test_a_point_that_fails_on_its_way_leaves_a_table_of_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "+recipe=chain", "seed=1", "plan.quantize.group_size=24,16"]
    assert main(["compress", *words]) == 2
    captured = capsys.readouterr()
    assert "lcc: plan.quantize.group_size=24: step 'quantize' cannot run" in captured.err
    table = captured.out.rpartition("finished in")[2]
    assert "plan.quantize.group_size=16" in table
    assert "group_size=24" not in table


def test_why_names_what_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "finetune", "+recipe=chain", "seed=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finetune would run; it differs from the finished ")
    assert lines[1:] == ["  seed: 1 → 2"]
    assert main(["why", "finetune"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_two_processes_train_as_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+recipe=chain", "distributed=fsdp", "seed=2"]
    assert main(["finetune", *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(_statuses(facts))[-2:] == ["finetune", "finetune.merged"]
    assert set(list(_statuses(facts).values())[-2:]) == {"finished"}
    report = folder / "runs" / "store" / facts["steps"][-2]["key"] / "report.json"
    measures = json.loads(report.read_text(encoding="utf-8"))["measures"]
    assert measures["processes"]["value"] == 2 and measures["gradient_bytes_per_step"]["value"] > 0


def test_another_number_of_processes_reuses_what_one_trained(folder: Path) -> None:
    words = ["+recipe=chain", "seed=1", "distributed.world_size=2"]
    assert _ran(lcc.run(*words)) == []


def test_bare_eval_goes_on_with_the_last_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = (folder / "runs" / "last").read_text().strip()
    assert main(["eval", "--json"]) == 0
    captured = capsys.readouterr()
    assert f"going on with {last}: +recipe=chain seed=1" in captured.err
    statuses = _statuses(json.loads(captured.out))
    assert set(statuses.values()) == {"reused"}
    assert list(statuses)[-1] == "eval.quantize"


def test_an_exported_model_loads_without_lcc(folder: Path) -> None:
    assert main(["export", "quantize", "--out", "x"]) == 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("x")
    tokenizer = AutoTokenizer.from_pretrained("x")
    tokens = tokenizer("Save the file.", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=2, do_sample=False).shape[0] == 1


@pytest.mark.parametrize(
    "word, message",
    [
        ("plan.quantize.average_bits=9", "quantize.average_bits: nearest mixes"),
        (
            "plan.quantize.group_size=24",
            "quantize.group_size: 24 does not divide all inputs (one has"
            " 64); what does: 64, 32, 16, 8, channel.",
        ),
    ],
)
def test_a_family_is_refused_before_training(
    word: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(_here(tmp_path))
    assert main(["run", "+recipe=chain", word]) == 2
    assert f"step 'quantize' cannot run: {message}" in capsys.readouterr().err
    facts = json.loads(next((tmp_path / "runs").glob("chain-*/run.json")).read_text())
    assert facts["status"] == "failed"
    assert set(_statuses(facts).values()) == {"finished", "pending"}
