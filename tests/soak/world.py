"""The small run that the soak kills and starves: a training from the recipe to the store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

RECIPE = """# Fifteen steps of a tiny model whose every draw matters, saved after each.
defaults:
  - override /model: tiny_llama
  - override /dataset: tiny_en_zh
  - override /task: translation
  - override /method: full
threads: 1
stages:
  finetune: {epochs: 3, batch_tokens: 256, lr: 5e-3, dropout: 0.1, save_every: 1, eval_every: 4}
"""
WORDS = ["+recipe=soak"]
STEP = "finetune"
# Measures of a clock or of this process, which no two runs share.
TIMED = ("training_seconds", "tokens_per_second")


def found(folder: Path) -> Path:
    """A folder in which `lcc finetune +recipe=soak` can be said."""
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "soak.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def planned(folder: Path) -> Any:
    """The steps of the run: composed once, as that takes longer than the run itself."""
    from lcc.pipeline.planner import pipeline_of

    os.chdir(folder)
    return pipeline_of(WORDS, "finetune")


def run(folder: Path, pipeline: Any) -> int:
    """The whole run in this process, as the command does it; returns the exit code."""
    from lcc.core.errors import LccError
    from lcc.pipeline.runner import run_pipeline

    os.chdir(folder)
    try:
        run_pipeline(pipeline, words=WORDS, verb="finetune")
    except LccError as error:
        print(f"lcc: {error}", flush=True)
        return error.exit_code
    return 0


def without_result(whole: Path, target: Path) -> Path:
    """A copy of a finished folder from which the training is still to be done."""
    shutil.copytree(whole, target, symlinks=True)
    for step in steps(target):
        if step["name"] not in ("base", "data"):
            shutil.rmtree(target / "runs" / "store" / step["key"])
    return target


def steps(folder: Path) -> list[dict[str, Any]]:
    """The steps of the folder's run."""
    run = json.loads(next((folder / "runs").glob("soak-*/run.json")).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = run["steps"]
    return found


def result(folder: Path) -> dict[str, Any]:
    """What must be the same after any number of kills: weights, losses, measures."""
    key = next(step["key"] for step in steps(folder) if step["name"] == STEP)
    artifact = folder / "runs" / "store" / key
    files = json.loads((artifact / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    lines = (artifact / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    measures = json.loads((artifact / "report.json").read_text(encoding="utf-8"))["measures"]
    return {
        "weights": {n: f["sha256"] for n, f in files.items() if n.startswith("model/")},
        "files": sorted(files),
        "losses": rows,
        "measures": {n: m for n, m in measures.items() if n not in TIMED},
    }
