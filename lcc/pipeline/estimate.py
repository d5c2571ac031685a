"""Estimate of a step's cost: measured where a like step is in the store, else reckoned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lcc.calibration.calibrate import Calibration
from lcc.core.errors import IntegrityError
from lcc.core.machine import cores
from lcc.models.sources import stats_bytes
from lcc.pipeline.recipe import Recipe
from lcc.pipeline.steps import Pipeline, Step
from lcc.store.store import Store
from lcc.training.checkpoint import GENERATIONS
from lcc.training.optim import OPTIMIZER_BYTES

# One Sapphire Rapids core does 118 GFLOP/s in fp32 matrix products; training reaches half of it.
FLOPS_PER_CORE = 118e9 * 0.55
FLOPS_PER_ACCELERATOR = 50e12
TOKENS_PER_ROW = 30
TOKENS_PER_ANSWER = 60  # prompt and answer
DEFAULT_ROWS = 10_000
TYPICAL_LAYERS = 24
SECONDS_OF_HOUSEKEEPING = 5  # load, save, reload, compare
SECONDS_PER_BENCHED_CHECKPOINT = 30
# What backward keeps of one token: about 34 numbers a layer and channel (Korthikanti et al., 2022)
# at four bytes; layers × channels is N / 12 / channels, and 768 are typical of small models.
ACTIVATION_BYTES = 34 * 4 / 12 / 768

Reports = dict[str, dict[str, Any]]
"""Key → the report of that artifact."""


@dataclass(frozen=True)
class Estimate:
    """Seconds, peak bytes of memory and bytes on disk; `basis` says where they come from."""

    seconds: float
    memory_bytes: int
    disk_bytes: int
    basis: str  # "store", "measured", "reckoned"


# Weights, the best so far and the optimizer's two moments of one trained parameter, in float32.
STATE_BYTES = 4 + 4 + OPTIMIZER_BYTES
ADAPTER_SHARE = 0.03  # of a model's parameters, where an adapter is trained
LEAST_BYTES = 16 << 20  # of a model whose size nobody tells


def disk_needed(pipeline: Pipeline, store: Store) -> int:
    """Bytes that the steps still to run leave on the disk, and the largest resume state of one."""
    estimates = estimate(pipeline, store)
    stored, _ = _parameters(pipeline.recipe)
    todo = [step for step in pipeline.steps if estimates[step.name].basis != "store"]
    states = [_state_bytes(step, stored) for step in todo]
    return sum(estimates[step.name].disk_bytes for step in todo) + max(states, default=0)


def space_needed(step: Step, reports: Sequence[dict[str, Any]]) -> int:
    """Bytes that one step takes while it runs: its model twice (drafts), and its resume state.

    `reports` are those of its inputs.
    """
    spec = getattr(step.stage, "spec", None)
    sizes = [report.get("model_bytes") or 0 for report in reports]
    largest = max([*sizes, getattr(spec, "bytes", 0) or 0, LEAST_BYTES])
    counts = [report["measures"].get("parameters", {}).get("value") or 0 for report in reports]
    return 3 * largest + _state_bytes(step, max(counts, default=0))


def _state_bytes(step: Step, parameters: int) -> int:
    """What a training keeps to resume from: whole generations, and one in the making."""
    if not getattr(step.stage, "trains", False):
        return 0
    trained = parameters if _trains_all(step) else ADAPTER_SHARE * parameters
    return int((GENERATIONS + 1) * trained * STATE_BYTES)


def estimate(pipeline: Pipeline, store: Store) -> dict[str, Estimate]:
    """Step name → estimate; finished steps cost nothing."""
    reports: Reports = {}
    for artifact in store.artifacts():
        with suppress(IntegrityError):  # what cannot be read is set aside when it is needed
            reports[artifact.key] = artifact.report
    return {step.name: _of(step, pipeline.recipe, reports) for step in pipeline.steps}


def _of(step: Step, recipe: Recipe, reports: Reports) -> Estimate:
    if step.key in reports:
        return Estimate(0.0, 0, int(reports[step.key].get("model_bytes") or 0), "store")
    like = _alike(step, reports)
    if like is not None:
        return Estimate(
            float(like["seconds"]),
            int(like.get("peak_memory_bytes") or 0),
            int(like.get("model_bytes") or 0),
            "measured",
        )
    return _reckoned(step, recipe, reports)


def _alike(step: Step, reports: Reports) -> dict[str, Any] | None:
    """The report of a finished step that did the same, with an input in common (the data, say)."""
    wanted = step.ingredients["stage"]
    inputs = set(step.ingredients["inputs"].values())
    for report in reports.values():
        made = report.get("ingredients", {})
        same = made.get("kind") == step.kind and made.get("stage") == wanted
        if same and inputs & set(made["inputs"].values()):
            return report
    return None


def _reckoned(step: Step, recipe: Recipe, reports: Reports) -> Estimate:
    stored, active = _parameters(recipe)
    rate = FLOPS_PER_CORE * cores() if recipe.device_type == "cpu" else FLOPS_PER_ACCELERATOR
    seconds = SECONDS_OF_HOUSEKEEPING + _flops(step, recipe, active, reports) / rate
    if step.kind == "bench":
        seconds = SECONDS_PER_BENCHED_CHECKPOINT * len(step.inputs)
    disk = 2 * stored if step.stage.changes_model and step.checkpoint else 2**20
    if getattr(step.stage, "gram", False):
        disk = stats_bytes(recipe.model)
    return Estimate(round(seconds, 1), _memory(step, stored, active), disk, "reckoned")


def _flops(step: Step, recipe: Recipe, active: int, reports: Reports) -> float:
    """A token costs 2·N forward, 2·N for gradients of inputs, 2·N for those of weights."""
    stage: Any = step.stage
    if getattr(stage, "trains", False):
        passes = 6 if _trains_all(step) else 4
        teacher = 2 if "teacher" in step.inputs else 0
        return float(passes + teacher) * active * _training_tokens(step, recipe, reports)
    if step.kind == "eval":
        # Decoding one token at a time reaches a third of what whole sequences do.
        return 2.0 * active * getattr(stage, "samples", 300) * TOKENS_PER_ANSWER * 3
    if step.kind == "calibrate" or ("stats" not in step.inputs and getattr(stage, "needs", None)):
        # Forward, and a Gram of every input, which is as much again; in sequence forward twice.
        return 2.0 * active * _calibration_tokens(step, recipe) * (2 + (step.kind != "calibrate"))
    if step.kind == "depth":
        # For each layer that goes every layer left is tried, on average by half a forward.
        num_removed = stage.num_layers or stage.ratio * TYPICAL_LAYERS
        trials = num_removed * (TYPICAL_LAYERS - num_removed / 2) / 2
        return 2.0 * active * _calibration_tokens(step, recipe) * float(trials)
    return 0.0


def _calibration_tokens(step: Step, recipe: Recipe) -> float:
    calibration: Calibration = step.stage.calibration  # type: ignore[attr-defined]
    return min(calibration.samples * _tokens_per_row(recipe), float(calibration.max_tokens))


def _training_tokens(step: Step, recipe: Recipe, reports: Reports) -> float:
    stage: Any = step.stage
    spec = recipe.dataset
    rows = _rows(step, reports) or (spec.rows if spec else 0) or DEFAULT_ROWS
    each = _tokens_per_row(recipe)
    tokens = min(rows, stage.samples or rows) * each * float(stage.epochs)
    return min(tokens, stage.max_steps * stage.batch_tokens) if stage.max_steps else tokens


def _tokens_per_row(recipe: Recipe) -> float:
    spec = recipe.dataset
    return spec.tokens / spec.rows if spec and spec.rows and spec.tokens else TOKENS_PER_ROW


def _memory(step: Step, stored: int, active: int) -> int:
    """fp32 weights, and in training optimizer state and what backward keeps of a micro-batch."""
    if not getattr(step.stage, "trains", False):
        return 8 * stored
    tokens = getattr(step.stage, "micro_tokens", 2048)
    weights = 16 * stored if _trains_all(step) else 5 * stored
    if getattr(step.stage, "ema", None) is not None and _trains_all(step):
        weights += 4 * stored
    return weights + int(tokens * active * ACTIVATION_BYTES)


def _trains_all(step: Step) -> bool:
    method = getattr(step.stage, "method", None)
    return step.kind == "pretrain" or type(method).__name__ == "Full"


def _parameters(recipe: Recipe) -> tuple[int, int]:
    """All parameters, and those that multiply every token."""
    spec = recipe.model
    if spec is None:
        return 0, 0
    stored = spec.parameters or spec.bytes or 10**6
    return stored, spec.active_parameters or stored


def _rows(step: Step, reports: Reports) -> int:
    data = step.inputs.get("data")
    if data is None or data.key not in reports:
        return 0
    train = reports[data.key]["measures"].get("num_train", {})
    return int(train.get("value") or 0)
