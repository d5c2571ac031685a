"""What a step will cost: measured where a like step is in the store, else reckoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lcc.core.machine import cores
from lcc.core.store import Artifact, Store
from lcc.pipeline import Pipeline, Step
from lcc.recipe import Recipe

# One Sapphire Rapids core does 118 GFLOP/s in fp32 matrix products; small models reach a third.
FLOPS_PER_CORE = 118e9 * 0.33
FLOPS_PER_ACCELERATOR = 50e12
TOKENS_PER_ROW = 48
DEFAULT_ROWS = 10_000
SECONDS_PER_BENCHED_CHECKPOINT = 20


@dataclass(frozen=True)
class Estimate:
    """Seconds, peak bytes of memory and bytes on disk; `basis` says where they come from."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str  # "store", "measured", "reckoned"


def estimate(pipeline: Pipeline, store: Store) -> dict[str, Estimate]:
    """Step name → estimate; finished steps cost nothing."""
    artifacts = {artifact.key: artifact for artifact in store.artifacts()}
    return {step.name: _of(step, pipeline.recipe, artifacts) for step in pipeline.steps}


def _of(step: Step, recipe: Recipe, artifacts: dict[str, Artifact]) -> Estimate:
    if step.key in artifacts:
        report = artifacts[step.key].report
        return Estimate(0.0, 0, int(report.get("model_bytes") or 0), "store")
    like = _alike(step, artifacts)
    if like is not None:
        return Estimate(float(like["seconds"]), int(like.get("peak_memory_bytes") or 0),
                        int(like.get("model_bytes") or 0), "measured")  # fmt: skip
    return _reckoned(step, recipe, artifacts)


def _alike(step: Step, artifacts: dict[str, Artifact]) -> dict[str, Any] | None:
    """The report of a finished step that did the same to another input, or with another seed."""
    wanted = step.ingredients["stage"]
    for artifact in artifacts.values():
        made = artifact.report.get("ingredients", {})
        if made.get("kind") == step.kind and made.get("stage") == wanted:
            return artifact.report
    return None


def _reckoned(step: Step, recipe: Recipe, artifacts: dict[str, Artifact]) -> Estimate:
    parameters = _parameters(recipe)
    rows = _rows(step, artifacts)
    flops = _flops(step, parameters, rows)
    rate = FLOPS_PER_CORE * cores() if recipe.device_type == "cpu" else FLOPS_PER_ACCELERATOR
    seconds = flops / rate
    if step.kind == "bench":
        seconds = SECONDS_PER_BENCHED_CHECKPOINT * len(step.inputs)
    trains_all = type(getattr(step.stage, "method", None)).__name__ == "Full"
    memory = parameters * (16 if trains_all else 6)
    disk = 2 * parameters if step.stage.changes_model and step.checkpoint else 2**20
    return Estimate(round(seconds, 1), memory, disk, "reckoned")


def _flops(step: Step, parameters: int, rows: int) -> float:
    """2·N a token forward, 6·N a token of training (Kaplan et al., 2020)."""
    stage = step.stage
    if step.kind == "finetune":
        tokens = rows * TOKENS_PER_ROW * float(getattr(stage, "epochs", 1) or 1)
        limit = getattr(stage, "max_steps", None)
        if limit:
            tokens = min(tokens, limit * getattr(stage, "batch_tokens", 2048))
        return 6.0 * parameters * tokens
    if step.kind == "eval":
        # Decoding is bound by memory, not arithmetic: about a tenth of the rate is reached.
        return 2.0 * parameters * getattr(stage, "samples", 300) * 2 * TOKENS_PER_ROW * 10
    return 2.0 * parameters * 256 * TOKENS_PER_ROW


def _parameters(recipe: Recipe) -> int:
    spec = recipe.model
    if spec is None:
        return 0
    return int(getattr(spec, "parameters", 0) or getattr(spec, "bytes", 0) or 10**6)


def _rows(step: Step, artifacts: dict[str, Artifact]) -> int:
    data = step.inputs.get("data")
    if data is None or data.key not in artifacts:
        return DEFAULT_ROWS
    train = artifacts[data.key].report["measures"].get("train", {})
    return int(train.get("value") or DEFAULT_ROWS)
