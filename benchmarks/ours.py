"""One compression by lcc as a library, timed: `python ours.py JOB.json`, facts as JSON on stdout.

The job: model, data, out (folders), steps (name → options, as in a plan), tokens, seed, threads,
and mode (dense or sequential).
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

METHODS = ("quantize", "prune", "score")  # of a method's card: where its arithmetic happens


class Clock:
    """Seconds, by the wall and of the processor, inside the outermost of the clocked calls."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds, self.depth = 0.0, 0.0, 0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            started, begun = time.perf_counter(), time.process_time()
            self.depth += 1
            try:
                return work(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - started
                    self.cpu_seconds += time.process_time() - begun

        return clocked


@contextmanager
def solving(stage: Any, clock: Clock) -> Iterator[None]:
    """While open, the calls in which `stage`'s method solves are clocked."""
    from lcc.compression.sparsity import Pattern

    method = getattr(stage, "quantizer", None) or getattr(stage, "criterion", None)
    places: list[tuple[Any, str]] = [
        (type(method), name) for name in METHODS if method is not None and hasattr(method, name)
    ]
    places.append((Pattern, "mask"))
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, work in before:
        setattr(owner, name, clock.around(work))
    try:
        yield
    finally:
        for owner, name, work in before:
            setattr(owner, name, work)


def stages(steps: dict[str, dict[str, Any]], *, tokens: int, mode: str) -> list[tuple[str, Any]]:
    """The decoded stages of a plan, each calibrated on `tokens` tokens in rows of 512."""
    from lcc.config.cards import STAGES, decode, find_card

    found = []
    for name, node in steps.items():
        options = {k: v for k, v in node.items() if k != "kind"}
        cls = find_card(STAGES, str(node.get("kind", name)))
        if "calibration" in cls.__dataclass_fields__ and cls.__name__ != "Depth":
            looks = {"samples": 100_000, "max_tokens": tokens, "mode": mode}
            options["calibration"] = {**looks, **options.get("calibration", {})}
        found.append((name, decode(cls, options, name)))
    return found


@functools.cache
def task_named(name: str) -> Any:
    from lcc.pipeline.recipe import load_recipe

    return load_recipe([f"task={name}"]).task


def context(folder: Path, job: dict[str, Any], inputs: dict[str, Path]) -> Any:
    """What the stages get beside the model."""
    from lcc.core.progress import Progress
    from lcc.distributed.dist import SINGLE
    from lcc.methods.trackers.none import NoneTracker
    from lcc.pipeline.stage import Context

    folder.mkdir(parents=True, exist_ok=True)
    task = task_named(job.get("task", "generation"))
    return Context(
        folder=folder,
        seed=job["seed"],
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=NoneTracker(),
        task=task,
        inputs={"data": Path(job["data"]), **inputs},
    )


def statistics(bundle: Any, job: dict[str, Any], stage: Any, folder: Path) -> Path:
    """The calibration of a dense stage; one that lies in `folder` already serves again."""
    from lcc.config.cards import STAGES, find_card

    gram = stage.needs == "gram"
    target = folder / ("gram" if gram else "diagonal")
    if not (target / "done").is_file():
        shutil.rmtree(target, ignore_errors=True)
        made = find_card(STAGES, "calibrate")(calibration=stage.calibration, gram=gram)
        made.run(bundle, context(target, job, {}))
        (target / "done").touch()
    return target


def _artifact(model: Path, work: Path) -> Path:
    """A folder in which `model/` is the model, as stages expect their inputs."""
    folder = work / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").symlink_to(model)
    return folder


def warm(stage: Any) -> None:
    """Solve something small first: kernels are compiled once per installation, not per run."""
    import torch

    from lcc.calibration.statistics import LayerStats
    from lcc.compression.quantization_grid import IntGrid
    from lcc.compression.sparsity import Pattern
    from lcc.methods.criteria import Pruner

    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 128, generator=generator) for n in (64, 512))
    sums = x.mean(0), x.abs().mean(0), x.abs().amax(0), x.square().sum(0)
    stats = LayerStats(512, *sums, gram=x.T @ x)
    quantizer, criterion = (getattr(stage, n, None) for n in ("quantizer", "criterion"))
    if getattr(quantizer, "needs", None) == "gram":
        quantizer.quantize(weight, stats, IntGrid(stage.bits, 64, "bfloat16"))
    if criterion is None or not hasattr(stage, "pattern"):
        return
    asked = Pattern(stage.pattern, stage.sparsity)
    if not isinstance(criterion, Pruner):
        asked.mask(criterion.score(weight, stats))
        return
    for sizes in ([64], [32, 32]):  # Layers solved together lie otherwise in memory than one.
        criterion.prune(weight, stats, [asked] * len(sizes), sizes)


def prepare(bundle: Any) -> None:
    """Imports, and the tokenizer: a peer is given token ids."""
    import importlib

    import compressed_tensors.compressors  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    kind = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))["model_type"]
    importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    assert len(bundle.tokenizer)


def compress(job: dict[str, Any]) -> dict[str, Any]:
    """Load, calibrate, solve, save; seconds of each, imports left out."""
    from lcc.models import checkpoint
    from lcc.models.bundle import open_bundle

    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    todo = stages(job["steps"], tokens=job["tokens"], mode=job.get("mode", "dense"))
    for _, stage in todo:
        warm(stage)
    bundle = open_bundle(Path(job["model"]))
    prepare(bundle)
    task_named(job.get("task", "generation"))
    clock, calibrating = Clock(), 0.0
    started, worked = time.perf_counter(), time.process_time()
    bundle.load()
    notes: list[str] = []
    for index, (name, stage) in enumerate(todo):
        if index:  # a step reads what the one before it left on disk
            checkpoint.save(bundle, out / "work" / f"after-{index}" / "model")
            bundle = open_bundle(out / "work" / f"after-{index}" / "model")
        inputs: dict[str, Path] = {}
        if getattr(stage, "needs", None) and stage.calibration.mode == "dense":
            begun = time.perf_counter()
            stats = Path(job["stats"]) if job.get("stats") else out / "work" / "stats"
            inputs["stats"] = statistics(bundle, job, stage, stats)
            calibrating += time.perf_counter() - begun
        if getattr(stage, "teacher", None):
            inputs["teacher"] = _artifact(Path(job.get("teacher", job["model"])), out / "work")
        with solving(stage, clock):
            outcome = stage.run(bundle, context(out / "work" / name, job, inputs))
        bundle = outcome.bundle
        notes += outcome.notes + outcome.warnings
    checkpoint.save(bundle, out / "model")
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    shutil.rmtree(out / "work", ignore_errors=True)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "solver_seconds": clock.seconds,
        "solver_cpu_seconds": clock.cpu_seconds,
        "calibration_seconds": calibrating,
        "notes": notes,
    }


def calibration_ids(job: dict[str, Any]) -> list[list[int]]:
    """The very token ids that lcc calibrates on, row by row, for a peer to read."""
    from lcc.calibration.calibrate import Calibration
    from lcc.config.cards import decode
    from lcc.models.bundle import open_bundle
    from lcc.stages._input_groups import text_batches

    bundle = open_bundle(Path(job["model"]))
    looks = decode(Calibration, {"samples": 100_000, "max_tokens": job["tokens"]}, "calibration")
    batches = text_batches(context(Path(job["out"]), job, {}), bundle, bundle.load(), looks)
    pairs = (
        pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def main() -> None:
    import torch

    from lcc.models.card import hush

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    hush()
    facts = calibration_ids(job) if job.get("only") == "ids" else compress(job)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
