"""Worker process of one step: opens the inputs, runs the stage, saves, checks the reload, reports."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import disk
from lcc.core.lazy import torch, transformers
from lcc.core.machine import cores, keep_large_blocks, return_freed
from lcc.core.progress import Measure, Progress, Tracker
from lcc.models import card as card_module
from lcc.models import checkpoint
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.reload_check import adapter_gate, logits_as_stored, reload_gate
from lcc.pipeline.stage import Context, Outcome, Stage

if TYPE_CHECKING:
    from lcc.distributed.dist import Dist
    from lcc.tasks.task import Task


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to run one step; it travels to other processes."""

    name: str
    stage: Stage
    folder: Path
    inputs: Mapping[str, Path]
    task: Task | None
    seed: int
    device: str
    dtype: str
    threads: int | None
    tracker: Any
    run: str
    checkpoint: str | None
    space: int = 0  # bytes of disk that it was reckoned to take


def work_step(dist: Dist, job: Job) -> dict[str, Any]:
    """Run the stage of `job`; rank 0 leaves its files in `job.folder` and returns the facts.

    Raises ResourceError when the disk is full.
    """
    with disk.explain_errors(job.folder, job.space, job.name):
        return _work_step(dist, job)


def _work_step(dist: Dist, job: Job) -> dict[str, Any]:
    threads = _set_up(dist, job)
    _reset_peak()
    progress = Progress(log=job.folder / "log.txt" if dist.is_main else None, quiet=not dist.is_main)
    with _tracker(dist, job) as tracker:
        context = Context(
            folder=job.folder,
            seed=job.seed,
            device=job.device,
            dtype=job.dtype,
            dist=dist,
            progress=progress,
            tracker=tracker,
            task=job.task,
            inputs=job.inputs,
        )
        bundle = open_bundle(job.inputs["model"] / "model") if "model" in job.inputs else None
        outcome = job.stage.run(bundle, context)  # type: ignore[arg-type]
    _tell_group(outcome, job.stage, dist)
    facts: dict[str, Any] = {}
    if dist.is_main:
        streamed = outcome.bundle is not None and outcome.bundle.streamed is not None
        measures = {**outcome.measures, **_keep_model(outcome, job)}
        if streamed:
            keep_large_blocks()
        _keep_files(outcome, job.folder)
        facts = _facts(dataclasses.replace(outcome, measures=measures), threads)
    dist.barrier()
    return facts


def _tell_group(outcome: Outcome, stage: Stage, dist: Dist) -> None:
    """What a reader must know of the processes that did it."""
    outcome.warnings += [f"The processes were started again: {why}" for why in dist.restarts]
    distributed: Any = getattr(stage, "distributed", None)
    if dist.world_size > 1 and distributed.strategy == "fsdp" and not getattr(stage, "trains", 0):
        outcome.notes.append("fsdp shards what is trained; this step shared out its layers.")


def _set_up(dist: Dist, job: Job) -> int:
    """Fix threads and seeds before the first tensor: bit-identity needs both."""
    _hush_libraries()
    asked = os.environ.get("OMP_NUM_THREADS", "") if dist.world_size == 1 else ""
    threads = job.threads or int(asked or max(1, cores() // dist.local_size))
    torch.set_num_threads(threads)
    random.seed(job.seed)
    torch.manual_seed(job.seed)
    return threads


def _hush_libraries() -> None:
    """Bars and advice of libraries would bury what the step itself has to say."""
    card_module.hush()
    for name in ("transformers", "peft", "bitsandbytes", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class _tracker:
    """The user's tracker for one step, closed whatever happens; silent on other ranks."""

    def __init__(self, dist: Dist, job: Job) -> None:
        from lcc.methods.trackers.none import NoneTracker

        card = job.tracker if dist.is_main and job.tracker is not None else None
        name = f"{job.run}/{job.name}"
        self.tracker: Tracker = card.open(job.folder, name) if card else NoneTracker()

    def __enter__(self) -> Tracker:
        return self.tracker

    def __exit__(self, *error: object) -> None:
        self.tracker.close()


def _keep_model(outcome: Outcome, job: Job) -> dict[str, Measure]:
    """Save the stage's model and compare what a stranger loads with what is in memory."""
    bundle = outcome.bundle
    if bundle is None:
        return {}
    if job.checkpoint is not None:
        bundle.with_card(name=job.checkpoint if job.checkpoint != "base" else bundle.card.name)
    target = job.folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.save(bundle, target)
    size = {} if bundle.card.form == "adapter" else _size(bundle)
    expected = logits_as_stored(bundle, target)
    if expected is not None:
        bundle.release()  # It is on disk now, and is loaded from there once more.
        outcome.bundle = None
    return_freed()
    parent = job.inputs.get("model")
    gate = reload_gate(bundle, target, parent=parent / "model" if parent else None, expected=expected)
    if bundle.card.form == "adapter":
        assert parent is not None, "an adapter is trained on a base"
        gate |= adapter_gate(bundle, target.parent / "adapter", parent=parent / "model")
    return {**size, **gate}


def _size(bundle: Bundle) -> dict[str, Measure]:
    module = bundle.load(device=None, dtype=None)
    return {"parameters": Measure(sum(p.numel() for p in module.parameters()), "count")}


def _keep_files(outcome: Outcome, folder: Path) -> None:
    for name, path in outcome.files.items():
        target = folder / name
        if path.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)


def _facts(outcome: Outcome, threads: int) -> dict[str, Any]:
    measures = {name: dataclasses.asdict(m) for name, m in outcome.measures.items()}
    return {
        "measures": measures,
        "tables": outcome.tables,
        "notes": outcome.notes,
        "warnings": outcome.warnings,
        "threads": threads,
        "peak_memory_bytes": _peak_bytes(),
    }


def _reset_peak() -> None:
    """Ask the kernel to forget the peak of earlier steps; where it cannot, peaks only grow."""
    with suppress(OSError):
        Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")


def _peak_bytes() -> int:
    try:
        status = Path(f"/proc/{os.getpid()}/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
