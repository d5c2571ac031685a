"""Asked to stop inside any long loop, a run ends with 75 and goes on to the very same bytes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lcc.cli import main
from lcc.core import signals
from lcc.core.errors import PreemptedError
from lcc.pipeline.planner import pipeline_of
from lcc.pipeline.runner import run_pipeline

RECIPE = """# Every long loop there is, each in fractions of a second.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
  - override /method: full
threads: 1
stages:
  vocab: {}
  finetune: {max_steps: 3, batch_tokens: 256, eval_every: 2}
  depth: {num_layers: 1, accept_damage: true}
  distill:
    {teacher: finetune, max_steps: 2, batch_tokens: 256, distill: {mode: cached, num_samples: 8}}
  quantize: {quantizer: gptq, bits: 4, group_size: 16, calibration: {mode: sequential, samples: 16}}
  eval: {samples: 4, bootstrap: 100, max_new_tokens: 3, checkpoints: [base, quantize]}
  bench: {rounds: 1, requests: 1, new_tokens: 2, prompt_tokens: 4, checkpoints: [quantize]}
"""
# In the order in which a run comes to them: what each loop says it is.
LOOPS = ("read tiny_en_zh", "clean", "near-duplicates", "vocab", "encode train", "batch", "compare",
         "depth", "sample the teacher", "calibrate", "quantize", "answer", "evaluate",
         "measure")  # fmt: skip


def here(folder: Path) -> Path:
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "stopping.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@contextmanager
def asked_at(loop: str) -> Iterator[list[str]]:
    """A signal, sent the second time that `loop` looks whether it is to stop."""
    looks: list[str] = []
    original = signals.check

    def look(what: str) -> None:
        looks.append(what)
        if looks.count(loop) == 2 and what == loop:
            signal.raise_signal(signal.SIGUSR1)
        original(what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "check", look)
        yield looks


def results(folder: Path) -> dict[str, dict[str, str]]:
    """Step → the digest of each file whose bytes are no matter of time."""
    found = {}
    run = json.loads(next((folder / "runs").glob("stopping-*/run.json")).read_text())
    for step in run["steps"]:
        manifest = json.loads((folder / "runs/store" / step["key"] / "MANIFEST.json").read_text())
        digests = {n: facts["sha256"] for n, facts in manifest["files"].items()}
        timed = ("report.json", "log.txt", "curves.jsonl")
        found[step["name"]] = {n: d for n, d in digests.items() if n not in timed}
    return found


def curves(folder: Path) -> list[dict[str, float]]:
    paths = sorted((folder / "runs").glob("stopping-*/*/curves.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_every_long_loop_stops_when_asked_and_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here(tmp_path / "stopped"))
    with asked_at(LOOPS[0]):
        assert main(["run", "+recipe=stopping"]) == 75
    told = capsys.readouterr().err
    assert f"stopped: {LOOPS[0]}: asked to stop (SIGUSR1). " in told
    assert "run again to continue" in told
    pipeline, words = pipeline_of(["+recipe=stopping"], "run"), ["+recipe=stopping"]
    for loop in LOOPS[1:]:
        with asked_at(loop) as looks, pytest.raises(PreemptedError, match="asked to stop") as caught:
            run_pipeline(pipeline, words=words, quiet=True)
        assert loop in looks and caught.value.exit_code == 75
    run_pipeline(pipeline, words=words, quiet=True)
    monkeypatch.chdir(here(tmp_path / "whole"))
    run_pipeline(pipeline, words=words, quiet=True)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    assert curves(tmp_path / "stopped") == curves(tmp_path / "whole") != []
